"""ZeRO on CPU tensors, through gloo: several processes and one, with DeepSpeed and without, train the same."""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import truetune
import worlds
import zero_worlds
from conftest import arithmetic_rows, write_jsonl
from truetune.errors import BackendError, ConfigError
from worlds import difference, figures
from zero_worlds import PLAIN, SAVED, ZERO

pytestmark = pytest.mark.timeout(3 * worlds.LIMIT)  # A test that is the first waits for all worlds.
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install 'truetune[deepspeed]'"
)


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base and rows, trained by one process without DeepSpeed, then by two with it; some of it by one with it."""
    folder = tmp_path_factory.mktemp("zero")
    shutil.copytree(tiny_base, folder / "base")
    for name in (*PLAIN, "saved"):
        worlds.written_rows(folder, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUETUNE_CACHE", str(folder / "cache"))
        for name in PLAIN:
            zero_worlds.train(folder, name, processes=1)
        zero_worlds.go_on(folder, None, processes=1, output="saved-1", steps=6)
        _together(folder, 2, *ZERO, "saved-zero2-3", "saved-zero3-3")
        for stage in ("zero2", "zero3"):
            shutil.copytree(folder / f"saved-{stage}-2", folder / f"{stage}-back-to-1")
        shutil.copytree(folder / "saved-zero3-2", folder / "saved-zero3-3")
        _together(folder, 2, "saved-zero2-6", "saved-zero3-6")
        _together(folder, 3, "tiny-zero3", "saved-zero3-6")
        for stage in ("zero2", "zero3"):
            zero_worlds.go_on(folder, None, processes=1, output=f"{stage}-back-to-1", steps=6)
        zero_worlds.train_zero(folder, "whole-zero3", processes=1)
        yield folder


def _together(folder: Path, size: int, *names: str) -> None:
    worlds.require(worlds.ended(zero_worlds.start(size, folder, *names)), statuses=[0] * size)


PAIRS = [
    *[(name, 2) for name in ZERO],
    ("tiny-zero3", 3),
    ("whole-zero3", 1),
]


@needs_deepspeed
@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_zero_learns_what_one_process_learns_without_it(folder: Path, name: str, size: int) -> None:
    alone, together = folder / f"{ZERO[name][0]}-1", folder / f"{name}-{size}"
    assert difference(alone, together) <= 1e-5
    for names in (("loss", "grad_norm"), ("eval_loss", "eval_mean_token_accuracy"), ("mean_token_accuracy",)):
        assert figures(together, *names) == pytest.approx(figures(alone, *names), abs=1e-5, rel=1e-5)
    for counted in ("num_tokens", "supervised_tokens", "eval_supervised_tokens", "learning_rate", "eval_exact_match"):
        assert figures(together, counted) == figures(alone, counted)
    assert figures(together, "loss")
    assert json.loads((together / "run.json").read_text())["status"] == "finished"


@needs_deepspeed
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_checkpoint_is_the_one_that_one_process_writes(folder: Path, stage: str) -> None:
    alone, shared = (folder / run / "checkpoints" / "checkpoint-3" for run in ("saved-1", f"saved-{stage}-2"))
    assert {path.name for path in alone.iterdir()} == {path.name for path in shared.iterdir()}
    one, other = (torch.load(each / "optimizer.pt", weights_only=True) for each in (alone, shared))
    assert [group["params"] for group in one["param_groups"]] == [group["params"] for group in other["param_groups"]]
    assert one["state"].keys() == other["state"].keys()
    for place, states in one["state"].items():
        assert states.keys() == other["state"][place].keys()
        for name, value in states.items():
            assert torch.allclose(value, other["state"][place][name], atol=1e-5), (place, name)


@needs_deepspeed
@pytest.mark.parametrize(
    "resumed", ["saved-zero2-2", "saved-zero3-2", "saved-zero3-3", "zero2-back-to-1", "zero3-back-to-1"]
)
def test_a_run_goes_on_in_any_number_of_processes_and_without_deepspeed(folder: Path, resumed: str) -> None:
    assert difference(folder / "saved-1", folder / resumed) <= 1e-5
    assert figures(folder / resumed, "loss") == pytest.approx(figures(folder / "saved-1", "loss"), rel=1e-5)


@needs_deepspeed
def test_clipping_is_that_of_one_process(folder: Path) -> None:
    """The norm is above the limit, so that what was clipped otherwise would have learned otherwise."""
    assert min(figures(folder / "answered-zero3-2", "grad_norm")) > PLAIN["answered"]["max_grad_norm"]


@needs_deepspeed
def test_a_run_s_config_says_what_deepspeed_was_told(folder: Path) -> None:
    record = json.loads((folder / "whole-zero3-2" / "run.json").read_text())
    assert record["config"]["training"]["strategy"] == "deepspeed"
    assert record["config"]["training"]["deepspeed"] == "zero3"
    assert SAVED["method"] == "full"


# --- what is refused before anything loads ------------------------------------------------------------------


@pytest.fixture
def base_and_rows(tiny_base: Path, tmp_path: Path) -> dict[str, Any]:
    rows = write_jsonl(tmp_path / "rows.jsonl", arithmetic_rows(40))
    return {"model": str(tiny_base), "data": rows, "output_dir": tmp_path / "run", **worlds.FAST}


def test_without_the_package_it_is_refused_with_its_install_line(
    base_and_rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truetune.pipeline.zero.metadata_has", lambda package: False)
    with pytest.raises(BackendError, match="DeepSpeed, which is not installed") as caught:
        truetune.train(**base_and_rows, strategy="deepspeed")
    assert "truetune[deepspeed]" in (caught.value.hint or "")
    assert not base_and_rows["output_dir"].exists()


def test_a_config_that_contradicts_the_run_is_refused_before_weights_load(
    base_and_rows: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truetune.pipeline.zero.metadata_has", lambda package: True)
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_clipping": 0.5}))
    with pytest.raises(ConfigError, match=r"gradient_clipping = 0.5 contradicts training.max_grad_norm \(1.0\)"):
        truetune.train(**base_and_rows, deepspeed=str(file))
    assert not base_and_rows["output_dir"].exists()


@pytest.mark.parametrize("name", ["nowhere.json", "zero9"])
def test_a_name_that_is_no_file_and_none_of_ours_is_refused_even_without_the_package(
    base_and_rows: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truetune.pipeline.zero.metadata_has", lambda package: False)
    with pytest.raises(ConfigError, match=f"training.deepspeed: {name} is neither zero2 nor zero3 nor a file"):
        truetune.train(**base_and_rows, deepspeed=name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "ddp", "deepspeed": "zero2"}, "training.deepspeed is set, and training.strategy is ddp"),
        ({"deepspeed": "zero2", "load_in_4bit": True}, "model.load_in_4bit"),
        ({"strategy": "deepspeed", "optim": "adafactor"}, "training.optim: adafactor"),
        ({"strategy": "deepspeed", "precision": "fp16"}, "training.precision"),
        ({"strategy": "deepspeed", "torch_compile": True}, "training.torch_compile"),
        ({"strategy": "deepspeed", "backend": "unsloth"}, "training.backend"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_with_it_are_refused(
    base_and_rows: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        truetune.train(**{**base_and_rows, **settings})
