"""`truetune launch --print`: what starts a run on a cluster's machines, as a script or a command."""

import difflib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from truetune.errors import ConfigError

_NAMES = """
account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
container-id contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot
dependency distribution error exclude exclusive export export-file extra extra-node-info get-user-env gid gpu-bind
gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint hold ignore-pbs input job-name
kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network
nice no-kill no-requeue nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node
ntasks-per-socket open-mode output overcommit oversubscribe parsable partition power prefer priority profile
propagate qos quiet reboot requeue reservation segment signal sockets-per-node spread-job stepmgr switches
test-only thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid usage use-min-nodes verbose
wait wait-all-nodes wckey wrap
"""

SBATCH_OPTIONS = frozenset(_NAMES.split())
"""The long options of sbatch: those of its manual page in Slurm 22.05, and what came since."""

_BY_FLAG = ("nodes", "gpus-per-node", "ntasks-per-node", "cpus-per-task", "time")
"""What has an option of ours: the script's other lines stand on it."""

_FIXED = ("array", "no-requeue", "ntasks", "open-mode", "requeue", "signal", "wrap")
"""What going on behind the time limit stands on."""

_TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}")
"""Slurm's: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes and so on."""

_PLAIN = re.compile(r"[\w@%+=:,./~-]+")


@dataclass(frozen=True, slots=True)
class Job:
    """A training for a scheduler: so many processes on each of `nodes` machines, with a GPU each where there are any.

    `words` are those of `truetune train`, without where it writes; `output_dir` is None where each job has its own.
    `directory` is where it runs. It is asked to stop and save `stop_before` seconds before the time limit.
    `options` are more of sbatch's, `setup` lines of shell that make the machines ready.
    """

    name: str
    words: Sequence[str]
    output_dir: str | None
    directory: str
    python: str
    nodes: int = 1
    gpus_per_node: int = 1
    processes_per_node: int = 1
    cpus_per_task: int | None = None
    time: str | None = None
    stop_before: int = 300
    options: Sequence[str] = ()
    setup: Sequence[str] = ()

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_per_node


def slurm_script(job: Job, *, made_by: Sequence[str] = ()) -> str:
    """A script for sbatch, which goes on from the newest checkpoint whenever it is started again.

    Before its time limit the processes are asked to stop, which saves a checkpoint, and the job is queued again.
    ConfigError for options that sbatch does not have, or that would keep it from that.
    """
    return _SLURM.format(
        made_by=_comment(shlex.join(made_by)),
        options="\n".join(f"#SBATCH --{option}" for option in _options(job)),
        setup="".join(f"\n{line}" for line in job.setup),
        run=_run(job),
        srun=" \\\n  ".join(_srun(job)),
    )


_SLURM = """\
#!/bin/bash
# Made by: {made_by}
# Submit it with sbatch. Each time that it starts, it goes on from the newest checkpoint: behind its time limit,
# when a machine has failed, or submitted again.
{options}
{setup}
set -u
run={run}
signals=0
training=

# srun passes it on to the processes: they finish their step, save a checkpoint and end.
trap 'signals=$((signals + 1)); kill -s USR1 "$training"' USR1

saved() {{
  find "$run/checkpoints" -maxdepth 1 -name 'checkpoint-*' 2>/dev/null | sort
}}
before=$(saved)

{srun} &
training=$!

# A signal ends `wait`, not what is waited for.
while :; do
  heard=$signals
  wait "$training"
  status=$?
  [ "$signals" -eq "$heard" ] && break
done

# From 128 on it was stopped by a signal. Whatever else went wrong would do so again, and so would a start too slow.
if [ "$signals" -gt 0 ] && [ "$status" -ge 128 ]; then
  if [ "$(saved)" = "$before" ]; then
    echo "stopped before the time limit with nothing new saved, and not queued again: it needs a longer --time"
  else
    echo "stopped before the time limit, and queued again: it will go on from the newest checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$status"
"""


def torchrun_command(job: Job) -> str:
    """The command for each of the machines: torchrun starts its processes there, and finds the others.

    Several machines meet at $HEAD_NODE, the name or address of one of them.
    """
    place = (
        ["--standalone"]
        if job.nodes == 1
        else [
            f"--nnodes {job.nodes}",
            "--rdzv-backend c10d",
            '--rdzv-endpoint "$HEAD_NODE:29500"',
            f"--rdzv-id {shlex.quote(job.name)}",
        ]
    )
    output = job.output_dir or f"runs/{job.name}"
    starter = f"{shlex.quote(job.python)} -m torch.distributed.run"
    started = f"-m truetune {_train(job, shlex.quote(output))}"
    return " \\\n  ".join([starter, *place, f"--nproc-per-node {job.processes_per_node}", started]) + "\n"


def _srun(job: Job) -> Iterator[str]:
    yield "srun --kill-on-bad-exit=1"
    if job.cpus_per_task:
        # Since Slurm 22.05 srun does not take it from the job.
        yield f"--cpus-per-task={job.cpus_per_task}"
    train = _train(job, '"$run"')
    yield f"{shlex.quote(job.python)} -P -m truetune {train}"


def _run(job: Job) -> str:
    """The run's directory: the job's number stays the same when it is queued again."""
    return shlex.quote(job.output_dir) if job.output_dir else f'"runs/{job.name}-$SLURM_JOB_ID"'


def _train(job: Job, output: str) -> str:
    return f"train {shlex.join(job.words)} --output-dir {output} --resume auto"


def _options(job: Job) -> Iterator[str]:
    """sbatch's options, each once; of name, log and directory those that were asked for."""
    asked = _asked(job.options)
    defaults = {"job-name": job.name, "chdir": job.directory, "output": "%x-%j.log"}
    for name, value in {**defaults, **asked}.items():
        yield name if value is None else f"{name}={_quoted(value)}"
    yield f"nodes={job.nodes}"
    yield f"ntasks-per-node={job.processes_per_node}"
    if job.gpus_per_node:
        yield f"gpus-per-node={job.gpus_per_node}"
    if job.cpus_per_task:
        yield f"cpus-per-task={job.cpus_per_task}"
    if job.time:
        yield f"time={_require_time(job.time)}"
    # The log goes on, as the run does; B: only this script hears of the limit, since srun passes it on.
    yield from ("open-mode=append", "requeue", f"signal=B:USR1@{job.stop_before}")


def _asked(options: Sequence[str]) -> dict[str, str | None]:
    """Further options by name, None where one takes no value. ConfigError, with all that is wrong."""
    asked = dict(_named(option) for option in options)
    if problems := [problem for name in asked if (problem := _problem(name))]:
        raise ConfigError("; ".join(problems), hint="--sbatch takes sbatch's long options: --sbatch partition=gpu")
    return asked


def _named(option: str) -> tuple[str, str | None]:
    name, has_value, value = option.partition("=")
    return name.lstrip("-"), value if has_value else None


def _problem(name: str) -> str | None:
    if name in _BY_FLAG:
        return f"--sbatch {name}: give it as --{name}"
    if name in _FIXED:
        return f"--sbatch {name}: the script has its own, by which it goes on behind its time limit"
    if name not in SBATCH_OPTIONS:
        close = difflib.get_close_matches(name, SBATCH_OPTIONS, n=1)
        return f"--sbatch {name}: sbatch has no such option" + (f"; did you mean {close[0]}?" if close else "")
    return None


def _require_time(time: str) -> str:
    if not _TIME.fullmatch(time):
        raise ConfigError(
            f"--time is {time!r}, which Slurm does not read", hint="write 24:00:00, 90 (minutes) or 2-12 (days-hours)"
        )
    return time


def _quoted(value: str) -> str:
    """As sbatch reads it in its lines of a script: in double quotes where it is more than one plain word."""
    if _PLAIN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _comment(text: str) -> str:
    return " ".join(text.split()) or "truetune"
