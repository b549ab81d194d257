"""A trained model is known again by its answers, and a model that is another one is told."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import truetune
from conftest import STRICT, arithmetic_rows, byte_tokenizer, tiny_model, write_jsonl
from heard import FAST, Heard
from truetune.cli import main
from truetune.errors import CheckpointError
from truetune.inference.generate import load_trained
from truetune.inference.parity import FILE, Fixture, Fixtures, Parity, as_json, read_fixtures, replay, told
from truetune.model import hardware
from truetune.pipeline.verify import verify_run
from truetune.runs.checkpoints import problems, read_manifest

CHATS = [
    {"messages": [{"role": "user", "content": each["instruction"]}, {"role": "assistant", "content": each["output"]}]}
    for each in arithmetic_rows(12)
]
TEXTS = [{"text": f"Adding {n} and {n + 1} makes {2 * n + 1}."} for n in range(12)]
COMPLETIONS = [{"prompt": f"{n} + {n + 1} =", "completion": f" {2 * n + 1}"} for n in range(12)]
FORMATS = {"instruction": arithmetic_rows(12), "chat": CHATS, "text": TEXTS, "completion": COMPLETIONS}


def trained(base: Path, rows: list[dict[str, Any]], folder: Path, **settings: Any) -> Path:
    data = write_jsonl(folder / "rows.jsonl", rows)
    options = {**FAST, "max_steps": 4, "learning_rate": 3e-2, **settings}
    truetune.train(model=str(base), data=data, output_dir=folder / "run", save_strategy="no", **options)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_base, FORMATS["instruction"], tmp_path_factory.mktemp("parity"))


def recorded(folder: Path) -> Fixtures:
    fixtures = read_fixtures(folder)
    assert fixtures is not None
    return fixtures


def answered(model: Any, fixture: Fixture) -> torch.Tensor:
    """The logits of the answer's tokens."""
    with torch.no_grad():
        logits = model(torch.tensor([fixture.prompt_ids + fixture.answer_ids])).logits[0]
    return logits[len(fixture.prompt_ids) - 1 : -1]


def greedy(model: Any, fixture: Fixture, stops: list[int]) -> list[int]:
    """What transformers itself answers."""
    ids = torch.tensor([fixture.prompt_ids])
    made = model.generate(ids, do_sample=False, max_new_tokens=16, eos_token_id=stops, pad_token_id=0)
    return made[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_run_is_asked_in_the_precision_that_it_trained_in(
    precision: str, dtype: torch.dtype, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the machine computes faster in another one. Weights alone do not say what they trained in."""
    run = trained(tiny_base, FORMATS["instruction"], tmp_path, precision=precision)
    monkeypatch.setattr(hardware, "has_native_bf16", lambda device: True)
    assert load_trained(run).model.dtype == load_trained(run / "adapter").model.dtype == dtype
    assert load_trained(shutil.copytree(run / "adapter", tmp_path / "alone")).model.dtype == torch.bfloat16
    assert load_trained(run, dtype="float32").model.dtype == torch.float32


# --- what is recorded --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_trained_model_answers_as_it_did_in_training(
    tiny_base: Path, tmp_path: Path, method: str, precision: str
) -> None:
    run = trained(tiny_base, FORMATS["instruction"], tmp_path, method=method, precision=precision)
    fixtures = recorded(run)
    found = replay(load_trained(run, dtype=fixtures.dtype, device="cpu").model, fixtures)
    assert (found.prompts, found.is_same) == (6, True)
    assert precision == "bf16" or found.equal == 6
    assert as_json(found).keys() == {"prompts", "equal", "ties", "max_abs_logit_difference"}


def test_the_answers_are_those_that_transformers_generates_one_by_one(run: Path) -> None:
    model, fixtures = load_trained(run), recorded(run)
    for fixture in fixtures.fixtures:
        assert list(fixture.answer_ids) == greedy(model.model, fixture, list(model.template.stop_token_ids))
        values = answered(model.model, fixture).topk(2).values
        assert fixture.margins == pytest.approx((values[:, 0] - values[:, 1]).tolist(), abs=1e-4)
        assert fixture.text == model.tokenizer.decode(fixture.prompt_ids)


@pytest.mark.parametrize("row_format", FORMATS)
def test_the_rows_prompts_are_what_training_put_before_what_it_learned(
    tiny_base: Path, tmp_path: Path, row_format: str
) -> None:
    run = trained(tiny_base, FORMATS[row_format], tmp_path)
    prompts = {fixture.text for fixture in recorded(run).fixtures}
    model = load_trained(run)
    match row_format:
        case "text":
            expected = {row["text"][:8] for row in TEXTS}
        case "completion":
            expected = {row["prompt"] for row in COMPLETIONS}
        case _:
            asked = [model.as_example(row["instruction"]) for row in FORMATS["instruction"]]
            expected = {model.tokenizer.decode(model.prompt_ids(example)) for example in asked}
    ours = {fixture.text for fixture in recorded(run / "adapter").fixtures}
    assert len(ours) == 2
    assert prompts - ours
    assert prompts - ours <= expected
    assert replay(model.model, recorded(run)).is_same


def test_a_base_without_a_template_is_asked_in_the_format_of_its_rows(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    run = trained(tmp_path / "base", FORMATS["instruction"], tmp_path)
    model, fixtures = load_trained(run), recorded(run / "adapter")
    assert "### Instruction:\nWhat is the capital of France?" in fixtures.fixtures[0].text
    asked = model.as_example("What is the capital of France?")
    assert list(fixtures.fixtures[0].prompt_ids) == model.prompt_ids(asked)
    assert replay(model.model, fixtures).equal == 2


def test_a_conversation_is_the_prompt_that_a_server_makes_of_it(run: Path) -> None:
    tokenizer = load_trained(run).tokenizer
    ours = recorded(run / "adapter").fixtures
    assert [[each["role"] for each in fixture.messages or ()] for fixture in ours] == [["user"], ["system", "user"]]
    for fixture in ours:
        messages = list(fixture.messages or ())
        made = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        assert made["input_ids"] == list(fixture.prompt_ids)


def test_a_conversation_that_a_server_would_refuse_is_not_handed_out_as_one(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    byte_tokenizer(chat_template=STRICT).save_pretrained(tmp_path / "base")
    first, second = recorded(trained(tmp_path / "base", CHATS, tmp_path) / "adapter").fixtures
    assert first.messages == ({"role": "user", "content": "What is the capital of France?"},)
    assert second.messages is None
    assert "Answer in one sentence." in second.text


def test_the_folder_that_may_be_passed_on_holds_no_row(run: Path) -> None:
    assert len(recorded(run).fixtures) == 6
    assert len(recorded(run / "adapter").fixtures) == 2
    assert not [path for path in (run / "adapter").iterdir() if b"Add " in path.read_bytes()]
    assert FILE in read_manifest(run / "adapter")["files"]
    assert not problems(run / "adapter")


def test_an_answer_ends_with_its_stop_token(tiny_base: Path, tmp_path: Path) -> None:
    run = trained(tiny_base, FORMATS["instruction"], tmp_path, max_steps=60)
    model, fixtures = load_trained(run), recorded(run).fixtures
    stops = set(model.template.stop_token_ids)
    assert any(fixture.answer_ids[-1] in stops for fixture in fixtures)
    assert not [fixture for fixture in fixtures if stops & set(fixture.answer_ids[:-1])]


def test_prompts_that_leave_the_model_no_room_to_answer_are_not_asked(tmp_path: Path) -> None:
    tiny_model(max_position_embeddings=80).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    run = trained(tmp_path / "base", [*COMPLETIONS, {"prompt": "x" * 70, "completion": "y"}] * 2, tmp_path)
    assert all(len(fixture.prompt_ids) + 16 <= 80 for fixture in recorded(run).fixtures)
    assert replay(load_trained(run).model, recorded(run)).is_same


def test_answers_that_cannot_be_recorded_cost_a_warning_and_no_weights(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from truetune.model import fixtures

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("none left")

    monkeypatch.setattr(fixtures, "drafts", fail)
    heard = Heard()
    data = write_jsonl(tmp_path / "rows.jsonl", FORMATS["instruction"])
    run = truetune.train(
        model=str(tiny_base), data=data, output_dir=tmp_path / "run", listener=heard, max_steps=1, **FAST
    )
    assert run.status == "finished"
    assert "answers could not be recorded (none left)" in heard.text()
    assert read_fixtures(tmp_path / "run") is None
    found = verify_run(tmp_path / "run")
    assert found.is_sound
    assert found.answers is None


# --- what a replay finds -----------------------------------------------------------------------------------


def test_a_tampered_adapter_is_not_the_same_model(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: -tensor if "lora_B" in name else tensor for name, tensor in load_file(file).items()}, file)
    found = replay(load_trained(tmp_path / "adapter").model, recorded(run))
    assert not found.is_same
    assert found.first_difference is not None
    assert "of the answer to" in found.first_difference


def test_an_adapter_on_another_base_or_on_none_is_not_the_same_model(run: Path, tmp_path: Path) -> None:
    tiny_model(seed=5).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    model = load_trained(run).model
    assert replay(model, recorded(run)).is_same
    assert not replay(load_trained(run, base_model=str(tmp_path / "other")).model, recorded(run)).is_same
    with model.disable_adapter():
        assert not replay(model, recorded(run)).is_same


def test_a_model_that_lacks_a_token_is_told_by_that(run: Path) -> None:
    found = replay(tiny_model(vocab_size=259, eos_token_id=1), recorded(run))
    assert found.equal == found.ties == 0
    assert "is none of the model's 259" in str(found.first_difference)


def test_another_models_logits_are_compared_at_the_same_places(run: Path) -> None:
    model, other, fixtures = load_trained(run).model, load_trained(run).model, recorded(run)
    assert replay(model, fixtures, against=other).max_abs_logit_difference == 0
    with torch.no_grad():
        other.get_output_embeddings().weight[7] += 0.5
    logits = [torch.cat([answered(each, one) for one in fixtures.fixtures]) for each in (model, other)]
    expected = float((logits[0] - logits[1]).abs().max())
    assert replay(model, fixtures, against=other).max_abs_logit_difference == pytest.approx(expected, abs=1e-5)


def twins(margin: float) -> tuple[Any, Fixtures]:
    """A model that holds two tokens for equally good, and an answer with the one that comes second by number."""
    model = tiny_model()
    prompt = tuple(range(1, 9))
    with torch.no_grad():
        first = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
        twin = first + 1 if first < 260 else 0
        low, high = sorted((first, twin))
        model.get_output_embeddings().weight[twin] = model.get_output_embeddings().weight[first]
    assert low != high
    return model, Fixtures((Fixture(prompt, (high,), (margin,), "prompt"),), "float32")


def test_two_tokens_that_led_by_no_more_than_rounding_are_a_tie() -> None:
    model, fixtures = twins(margin=1e-7)
    found = replay(model, fixtures)
    assert (found.equal, found.ties, found.is_same) == (0, 1, True)
    assert "which led by 1e-07 and lacks 0 now" in str(found.first_difference)


def test_a_token_that_clearly_led_then_is_no_tie_now() -> None:
    model, fixtures = twins(margin=0.1)
    found = replay(model, fixtures)
    assert (found.equal, found.ties, found.is_same) == (0, 0, False)


def test_a_token_that_clearly_lacks_now_is_no_tie_however_little_it_led() -> None:
    model, fixtures = twins(margin=1e-7)
    with torch.no_grad():
        model.get_output_embeddings().weight[fixtures.fixtures[0].answer_ids[0]] *= -1
    assert not replay(model, fixtures).is_same


def test_the_coarser_of_two_dtypes_says_what_rounding_is() -> None:
    model, fixtures = twins(margin=2e-3)
    assert not replay(model, fixtures).is_same
    assert replay(model, replace(fixtures, dtype="bfloat16")).is_same


# --- the files, and verify ---------------------------------------------------------------------------------


def test_a_folder_without_a_record_has_none_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    assert read_fixtures(tmp_path) is None
    for content in ("{", "{}", '{"format": 9, "fixtures": [], "dtype": "float32"}', "[]"):
        (tmp_path / FILE).write_text(content)
        with pytest.raises(CheckpointError, match="damaged"):
            read_fixtures(tmp_path)


def test_verify_asks_the_prompts_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "run")
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert "answers: as it was written (prompts 6, equal 6, ties 0)" in capsys.readouterr().out
    document = json.loads((tmp_path / "run" / FILE).read_text())
    document["fixtures"][0]["answer_ids"][0] = 65
    document["fixtures"][0]["margins"][0] = 1.0
    (tmp_path / "run" / FILE).write_text(json.dumps(document))
    assert main(["verify", str(tmp_path / "run"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["weights"]["complete"]
    assert not found["answers"]["complete"]
    assert found["answers"]["facts"] == {"prompts": 6, "equal": 5, "ties": 0}
    assert found["answers"]["problems"][0].startswith("1 of 6 prompts have other ones: token ")


def test_a_run_that_is_trained_anew_keeps_no_answers_of_the_earlier_one(run: Path, tmp_path: Path) -> None:
    from truetune.runs.directory import RunDirectory

    shutil.copytree(run, tmp_path / "run")
    RunDirectory(tmp_path / "run").clear()
    assert not (tmp_path / "run" / FILE).exists()


def test_a_check_is_told_in_one_way_wherever_it_was_made() -> None:
    found = Parity(prompts=6, equal=5, ties=1, max_abs_logit_difference=1.2e-5, first_difference=None)
    answers = "6 of 6 answers are the same, 1 by a tie"
    assert told(found) == f"{answers}; logits off by 1.2e-05 at most"
    assert told(found, logits_in="float32") == f"{answers}; logits off by 1.2e-05 at most, in float32"
    assert told(replace(found, ties=0, max_abs_logit_difference=None)) == "5 of 6 answers are the same"
