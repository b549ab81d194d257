"""bench/gpu_check.py holds on this machine's CPU, and fails where training is wrong."""

import json
import os
import subprocess
from pathlib import Path

import warm
from truetune.model.source import metadata_has

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu_check.py"
LEAKING = """
import sys
import gpu_check
from truetune.data import collate

import truetune.training.trl

right = collate.collate
for module in [each for name, each in sys.modules.items() if name.startswith("truetune.")]:
    if getattr(module, "collate", None) is right:
        module.collate = lambda rows: gpu_check.leaking(right(rows))
sys.exit(gpu_check.main(sys.argv[1:]))
"""
"""The check, where the positions of packed rows do not restart."""

BREAKING = """
import os
import sys
import time
import gpu_check


def raises(bench):
    raise ValueError("as it happens")


def hangs(bench):
    time.sleep(60)


def crashes(bench):
    os.abort()


broken = {check.__name__: gpu_check.Probe("broken", check, 2) for check in (raises, hangs, crashes)}
gpu_check.probes = lambda half: {**broken, "models": gpu_check.Probe("made here", gpu_check.small_model, 90)}
sys.exit(gpu_check.main(sys.argv[1:]))
"""
"""The check, with probes that end their process or never end."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    places = [str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        warm.python(*arguments, "--device", "cpu"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), "WARM_PYTHON": warm.executable()},
        capture_output=True,
        text=True,
        check=False,
    )


def verdicts(printed: str) -> dict[str, str]:
    """ok, FAILED or not run, by the probe's name."""
    lines = [line for line in printed.splitlines() if line.startswith(("ok ", "FAILED ", "not run "))]
    return {line[8:].split(" ")[0]: line[:8].strip() for line in lines}


def test_every_probe_holds_and_both_engines_are_told_of(tmp_path: Path) -> None:
    done = run(str(SCRIPT), "--rounds", "1", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    has_unsloth = metadata_has("unsloth")
    found = json.loads((tmp_path / "found.json").read_text())
    told = verdicts(done.stdout)
    assert told == {name: probe["status"] for name, probe in found["probes"].items()}
    assert len(told) == 15
    for name, verdict in told.items():
        is_left_out = (name.startswith("unsloth") and not has_unsloth) or name == "gpus"
        assert verdict == ("not run" if is_left_out else "ok"), done.stdout
    engines = found["side_by_side"]
    assert len(engines["trl"]["tokens_per_second"]) == 1
    assert engines["trl"]["peak_memory_bytes"][0] > 0
    assert len(engines["trl"]["losses"]) == 5
    assert (engines["unsloth"] is not None) == (engines["ratios"] is not None) == has_unsloth


def test_rows_that_see_each_other_fail_the_check() -> None:
    done = run("-c", LEAKING, "--only", "isolation-fp32", "accumulation", "8bit")
    # Four rows in a batch leak, one does not.
    failed = {"isolation-fp32": "FAILED", "accumulation": "FAILED"}
    assert verdicts(done.stdout) == {"models": "ok", **failed, "8bit": "ok"}, done.stdout
    assert done.returncode == 1


def test_a_probe_that_raises_hangs_or_crashes_is_told_and_the_next_one_goes_on() -> None:
    done = run("-c", BREAKING, "--only", "raises", "hangs", "crashes")
    assert verdicts(done.stdout) == {"raises": "FAILED", "hangs": "FAILED", "crashes": "FAILED", "models": "ok"}
    for told in ("ValueError: as it happens", "not done within 2 s", "its process died (exit status -6)"):
        assert told in done.stdout
    assert done.returncode == 1
