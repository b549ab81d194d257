"""What a machine cannot honour is refused at once, before rows are read and before anything loads (G20)."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import truetune
from conftest import arithmetic_rows, tiny_model, write_jsonl
from heard import FAST, Heard
from truetune.model import hardware


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Rows that cannot be read: whoever reads them says so first."""
    (tmp_path / "broken.jsonl").write_text("{")
    return tmp_path / "broken.jsonl"


REFUSED: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "c1": (["fp16=true"], ("fp16", "GPU", "auto")),
    "c1 by our name": (["precision=fp16"], ("fp16", "GPU", "auto")),
    "c2": (["fp16=true", "bf16=true"], ("fp16", "bf16")),
    "offloading": (["activation_offloading=true"], ("activation_offloading", "GPU", "gradient_checkpointing")),
}


ASK = """
import json, sys, time
from truetune.environment import set_environment
set_environment()
from truetune.cli import main
for words in json.loads(sys.argv[1]):
    print("status", main(words), "at", time.process_time(), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def refusals(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int, float]]:
    """What one process says to each case, its exit status there, and the CPU seconds that it has taken by then."""
    data = tmp_path_factory.mktemp("refused") / "broken.jsonl"
    data.write_text("{")
    commands = [
        ["train", "--model", str(tiny_base), "--data", str(data), "device=cpu", *settings]
        for settings, _ in REFUSED.values()
    ]
    command = [sys.executable, "-c", ASK, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = re.findall(r"(.*?)^status (\d+) at (\S+)$", done.stderr, re.DOTALL | re.MULTILINE)
    found = [(words, int(status), float(seconds)) for words, status, seconds in told]
    return dict(zip(REFUSED, found, strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_g20_flags_of_another_machine_are_refused(case: str, refusals: dict[str, tuple[str, int, float]]) -> None:
    told, status, _ = refusals[case]
    assert status != 0
    assert all(word in told for word in REFUSED[case][1])
    assert "broken.jsonl" not in told


def test_g20_they_are_refused_in_under_five_seconds(refusals: dict[str, tuple[str, int, float]]) -> None:
    """Of CPU time, so that a busy machine does not count: the first with all imports, the others after them."""
    at = [seconds for _, _, seconds in refusals.values()]
    assert at[0] < 5
    assert max(after - before for before, after in pairwise(at)) < 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optim": "adamw_8bit"}, ("adamw_8bit", "bitsandbytes", "adamw_torch")),
        ({"optim": "paged_adamw_32bit"}, ("paged_adamw_32bit", "bitsandbytes", "adamw_torch")),
        ({"load_in_4bit": True}, ("load_in_4bit", "bitsandbytes", "set it to false")),
        ({"load_in_4bit": True, "precision": "fp32"}, ("load_in_4bit", "bitsandbytes")),
        ({"load_in_8bit": True}, ("load_in_8bit", "bitsandbytes", "set it to false")),
    ],
    ids=str,
)
def test_g20_what_needs_bitsandbytes_is_refused_without_it_before_the_data_is_read(
    settings: dict[str, Any],
    words: tuple[str, ...],
    tiny_base: Path,
    broken: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("truetune.model.load.metadata_has", lambda _: False)
    with pytest.raises(truetune.BackendError) as caught:
        truetune.train(model=str(tiny_base), data=broken, **settings)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(("is_native", "expected"), [(True, "bf16"), (False, "fp32")])
@pytest.mark.parametrize("asked", [{}, {"precision": "auto"}], ids=["c5", "c6"])
def test_g20_without_a_word_a_cpu_trains_in_what_it_computes_natively(
    asked: dict[str, Any],
    is_native: bool,
    expected: str,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "has_native_bf16", lambda _: is_native)
    settings = {"device": "cpu", "max_steps": 1, "learning_rate": 1e-3, **asked}
    run = truetune.train(model=str(tiny_base), data=arithmetic_rows(4), output_dir=tmp_path / "run", **settings)
    record = json.loads((run.directory / "run.json").read_text())
    assert (record["precision"], record["status"]) == (expected, "finished")


def test_g20_bf16_that_a_cpu_emulates_is_trained_and_warned_of(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "has_native_bf16", lambda _: False)
    heard, settings = Heard(), {**FAST, "precision": "bf16", "device": "cpu", "max_steps": 1}
    run = truetune.train(
        model=str(tiny_base), data=arithmetic_rows(4), output_dir=tmp_path / "run", listener=heard, **settings
    )
    assert run.status == "finished"
    assert [line for line in heard.lines if line.startswith("warning: training.precision")]


# --- G18 and G22, from the config to the run --------------------------------------------------------------


def test_g18_the_steps_that_are_printed_are_those_that_are_taken_and_every_row_is_seen_each_epoch(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Ten rows of 25 tokens, two in a pack of 64: 5 packs, 3 steps an epoch."""
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "hi", "output": "yo"}] * 10)
    heard = Heard()
    run = truetune.train(
        model=str(tiny_base),
        data=rows,
        output_dir=tmp_path / "run",
        listener=heard,
        packing=True,
        max_length=64,
        test_size=0,
        num_train_epochs=2,
        gradient_accumulation_steps=1,
        warmup_ratio=0.5,
        **FAST,
    )
    assert "6 steps, 3 an epoch" in heard.text()
    assert "3 warm-up steps" in heard.text()
    last = run.metrics[-1]
    assert (run.steps, last["epoch"], last["num_tokens"]) == (6, 2, 2 * 10 * 25)


class Arguments(TrainerCallback):
    """Remembers what the trainer was given."""

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        self.given = args


def test_g21_rows_are_evaluated_before_training_and_no_more_at_a_time_than_trained(
    tiny_base: Path, tmp_path: Path
) -> None:
    seen, settings = Arguments(), {"max_steps": 1, "test_size": 2, "per_device_train_batch_size": 3, **FAST}
    truetune.train(
        model=str(tiny_base), data=arithmetic_rows(8), output_dir=tmp_path / "run", callbacks=[seen], **settings
    )
    assert seen.given.per_device_eval_batch_size == 3
    assert seen.given.eval_on_start


def test_g22_a_rate_of_lora_for_full_training_is_warned_of_before_the_model_loads(
    tiny_base: Path, tmp_path: Path
) -> None:
    heard = Heard()
    settings = {"model": str(tiny_base), "data": arithmetic_rows(4), "max_steps": 1, "precision": "fp32"}
    truetune.train(method="full", learning_rate=5e-4, output_dir=tmp_path / "full", listener=heard, **settings)
    truetune.train(learning_rate=1e-6, output_dir=tmp_path / "lora", listener=heard, **settings)
    first, second = [number for number, line in enumerate(heard.lines) if line.startswith("warning: learning rate")]
    loads = [number for number, line in enumerate(heard.lines) if line.startswith("loading")]
    assert first < loads[0] < second < loads[1]


def test_g22_two_ways_to_say_the_warm_up_are_refused_naming_both(tiny_base: Path, broken: Path) -> None:
    with pytest.raises(truetune.ConfigError) as caught:
        truetune.train(model=str(tiny_base), data=broken, warmup_ratio=0.1, warmup_steps=5)
    assert all(word in str(caught.value) for word in ("warmup_ratio", "warmup_steps"))


# --- what auto decides about memory -----------------------------------------------------------------------


def short_run(base: Path, folder: Path, **settings: Any) -> tuple[truetune.Run, Heard]:
    """A run of one step, and what it said."""
    heard = Heard()
    run = truetune.train(
        model=str(base),
        data=arithmetic_rows(4),
        output_dir=folder / "run",
        listener=heard,
        **{**FAST, "max_steps": 1, **settings},
    )
    return run, heard


@pytest.mark.parametrize(("free", "expected"), [(64_000_000_000, False), (100_000_000, True), (None, False)])
def test_checkpointing_follows_what_is_free_and_the_run_says_the_numbers(
    free: int | None, expected: bool, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truetune.pipeline.machine.free_memory", lambda _: free)
    run, heard = short_run(tiny_base, tmp_path)
    assert run.config.training.gradient_checkpointing is expected
    (line,) = [line for line in heard.lines if line.startswith("training.gradient_checkpointing")]
    assert re.search(r"needs about 6\d\d MB", line)
    assert tiny_model().num_parameters() < 100_000


def test_checkpointing_that_is_asked_for_is_not_decided(tiny_base: Path, tmp_path: Path) -> None:
    run, heard = short_run(tiny_base, tmp_path, gradient_checkpointing=True)
    assert run.config.training.gradient_checkpointing is True
    assert "training.gradient_checkpointing:" not in heard.text()


# --- what auto decides about compiling --------------------------------------------------------------------


def test_a_short_run_is_not_compiled_and_says_why(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truetune.pipeline.plan.usable_threads", lambda: 1)
    run, heard = short_run(tiny_base, tmp_path)
    assert run.config.training.torch_compile is False
    (line,) = [line for line in heard.lines if line.startswith("training.torch_compile")]
    assert "too short to gain from it" in line
