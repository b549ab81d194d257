"""What cannot be served where it shall be, what a model cannot read, what is no model to train: refused early."""

from pathlib import Path

import pytest
import transformers

import truetune
from conftest import CHATML, arithmetic_rows, byte_tokenizer, tiny_model, write_jsonl
from heard import Heard
from truetune.config.load import load_config
from truetune.pipeline.forecast import forecast
from truetune.pipeline.train import train_run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(30))


def test_an_adapter_that_its_server_cannot_load_is_refused_with_all_reasons_before_rows_are_read(
    tiny_base: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    asked = {"deploy": "vllm", "use_dora": True, "bias": "all", "r": 1024}
    with pytest.raises(truetune.ConfigError) as caught:
        truetune.train(model=str(tiny_base), data=broken, output_dir=tmp_path / "run", **asked)
    told = str(caught.value)
    assert all(name in told for name in ("adapter.use_dora: ", "adapter.bias: ", "adapter.r: rank 1024"))
    assert "merge the adapter" in told
    assert "vllm/lora" in told
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_rank_that_the_rows_choose_is_held_against_the_server_once_it_is_chosen(
    tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truetune.pipeline.train.open_session", None)
    with pytest.raises(truetune.ConfigError, match="rsLoRA one 4 times too little"):
        truetune.train(model=str(tiny_base), data=data, deploy="gguf", use_rslora=True, r="auto")


def test_what_serving_takes_is_a_warning_of_the_plan_and_of_the_run(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    heard, asked = Heard(), {"model": str(tiny_base), "data.path": str(data), "deploy": "vllm", "r": 64}
    config = load_config({**asked, "output_dir": str(tmp_path / "run")}).config
    assert any("--max-lora-rank 64" in warning for warning in forecast(config).as_json()["warnings"])
    train_run(config, dry_run=True, listener=heard)
    assert any(line.startswith("warning: adapter.r: ") and "--max-lora-rank 64" in line for line in heard.lines)


@pytest.mark.parametrize("asked", [{"deploy": "vllm", "method": "full"}, {"use_dora": True}], ids=str)
def test_whole_models_are_served_anywhere_and_without_a_server_named_nothing_is_refused(
    asked: dict[str, object], tiny_base: Path, data: Path
) -> None:
    told = truetune.plan(model=str(tiny_base), data=data, **asked).as_json()
    assert not any("vLLM" in warning for warning in told["warnings"])


def test_a_model_that_is_no_causal_language_model_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    transformers.T5Config(vocab_size=300, d_model=16, num_layers=1, num_heads=2).save_pretrained(folder)
    byte_tokenizer(chat_template=CHATML).save_pretrained(folder)
    with pytest.raises(truetune.BackendError, match="t5 is not a causal language model: t5"):
        truetune.plan(model=str(folder), data=data)


@pytest.mark.parametrize(("words", "is_refused"), [(260, True), (261, False)])
def test_rows_with_ids_that_the_model_has_no_embedding_for_are_refused_naming_both(
    words: int, is_refused: bool, data: Path, tmp_path: Path
) -> None:
    tiny_model(vocab_size=words).save_pretrained(tmp_path / "base")
    byte_tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "base")
    if is_refused:
        with pytest.raises(truetune.BackendError, match=r"ids up to 259, .* of ids up to 260"):
            truetune.plan(model=str(tmp_path / "base"), data=data)
    else:
        assert truetune.plan(model=str(tmp_path / "base"), data=data)


def test_ids_that_no_row_has_may_lie_beyond_the_embeddings(data: Path, tmp_path: Path) -> None:
    """A tokenizer may have more tokens than its model: what no row needs does no harm."""
    tokenizer = byte_tokenizer(chat_template=CHATML)
    tokenizer.add_tokens(["<never>"])
    tiny_model().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert truetune.plan(model=str(tmp_path / "base"), data=data)
