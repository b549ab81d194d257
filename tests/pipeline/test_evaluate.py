"""An evaluation says what is so: losses as a plain loop computes them, rows by their places, the base as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import truetune
from conftest import CHATML, arithmetic_rows, byte_tokenizer, tiny_model, write_jsonl
from heard import Heard
from tiny_runs import architecture, row
from truetune.cli import main
from truetune.data.examples import IGNORED, Location, Record, Tokenized
from truetune.data.formats import parse_example
from truetune.errors import BackendError, CheckpointError, ConfigError, DataError
from truetune.inference.losses import row_losses
from truetune.inference.tool_calls import Call
from truetune.model import hardware
from truetune.pipeline.evaluation.rows import evaluation_rows, expected_of, read_subject

QUICK = {"max_new_tokens": 8, "forgetting": False}


def trained(folder: Path, rows: Any, *, base: Path | None = None, **settings: Any) -> truetune.Run:
    if base is None:
        base = folder / "base"
        tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(base)
        byte_tokenizer(chat_template=CHATML).save_pretrained(base)
    options = {"precision": "fp32", "num_train_epochs": 4, "learning_rate": 1e-2, "save_strategy": "no"}
    return truetune.train(model=str(base), data=rows, output_dir=folder / "run", **{**options, **settings})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> truetune.Run:
    folder = tmp_path_factory.mktemp("evaluated")
    return trained(folder, str(write_jsonl(folder / "rows.jsonl", arithmetic_rows(24))), test_size=6)


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> truetune.Run:
    """A model that knows its rows by heart."""
    folder = tmp_path_factory.mktemp("knowing")
    rows = [
        {"id": 1, "instruction": "hi", "output": "yo"},
        {"id": 2, "instruction": "bye", "output": "so long"},
        {"id": 3, "instruction": "more", "output": "ok!"},
    ]
    path = write_jsonl(folder / "known.jsonl", rows)
    return trained(folder, str(path), method="full", num_train_epochs=60, per_device_train_batch_size=3)


def plain_losses(model: Any, rows: list[Tokenized]) -> list[float]:
    """Row by row, as transformers computes the loss: its mean over a row's learned tokens, times their number."""
    found = []
    for each in rows:
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([each.input_ids]), labels=torch.tensor([each.labels])).loss
        found.append(float(loss) * (len(each.labels) - 1 - each.labels[1:].count(IGNORED)))
    return found


# --- losses -----------------------------------------------------------------------------------------------

ROWS = [row(f"question {number}", "answer " * (1 + number % 7)) for number in range(23)]


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GPT2", "Bloom", "Mixtral"])
@pytest.mark.parametrize("tokens_at_a_time", [1, 100, 700, 100_000])
def test_losses_are_those_of_a_plain_loop_whatever_is_computed_together(name: str, tokens_at_a_time: int) -> None:
    model = architecture(name)
    found = row_losses(model, ROWS, pad_token_id=258, tokens_at_a_time=tokens_at_a_time)
    assert found.sums == pytest.approx(plain_losses(model, ROWS), rel=1e-4)
    assert found.tokens.tolist() == [each.supervised for each in ROWS]


def test_a_model_generates_with_its_own_attention_afterwards_and_trains_on() -> None:
    model = architecture("Llama").train()
    own = model.config._attn_implementation
    row_losses(model, ROWS[:3], pad_token_id=258)
    assert model.config._attn_implementation == own
    assert model.training
    assert all(each.requires_grad for each in model.parameters())


def test_a_row_that_learns_nothing_counts_for_nothing() -> None:
    silent = Tokenized([1, 2, 3], [IGNORED] * 3)
    found = row_losses(architecture("Llama"), [ROWS[0], silent], pad_token_id=258)
    assert (found.sums[1], found.tokens[1]) == (0.0, 0)
    assert found.loss == pytest.approx(found.sums[0] / found.tokens[0])


def test_accuracy_is_the_share_of_likeliest_tokens() -> None:
    model = architecture("Llama")
    labels = torch.tensor(ROWS[4].labels[1:])
    with torch.no_grad():
        likeliest = model(input_ids=torch.tensor([ROWS[4].input_ids])).logits[0, :-1].argmax(-1)
    found = row_losses(model, [ROWS[4]], pad_token_id=258)
    assert found.correct[0] == int((likeliest == labels)[labels != IGNORED].sum())


def test_where_memory_runs_out_fewer_rows_are_taken_at_a_time() -> None:
    model, longest = architecture("Llama"), []

    def refuse(_: Any, positional: Any, named: Any) -> None:
        tokens = named["input_ids"].numel()
        longest.append(tokens)
        if tokens > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. (as a test)")

    expected = row_losses(model, ROWS, pad_token_id=258)
    model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    found = row_losses(model, ROWS, pad_token_id=258, tokens_at_a_time=100_000)
    assert max(longest) > 200
    assert found.sums == pytest.approx(expected.sums, rel=1e-5)


# --- a run ------------------------------------------------------------------------------------------------


def test_the_loss_on_the_run_s_own_validation_rows_is_the_one_its_training_ended_with(run: truetune.Run) -> None:
    found = truetune.evaluate(run, **QUICK)
    assert found.rows == 6
    assert found.eval_loss == pytest.approx(run.eval_loss, rel=1e-4)
    assert found.perplexity == pytest.approx(torch.tensor(found.eval_loss).exp().item())
    assert found.learned_rows is None


def test_the_base_is_measured_as_it_was_and_the_tuned_model_stays_what_it_is(run: truetune.Run) -> None:
    found = truetune.evaluate(run, generate=False)
    config = truetune.load(run)
    base = config.model.unload()
    rows = list(truetune.prepare(run.directory / "config.yaml").validation)
    expected = sum(plain_losses(base, rows)) / sum(each.supervised for each in rows)
    assert found.base is not None
    assert found.base.loss is not None
    assert found.base.loss.eval_loss == pytest.approx(expected, rel=1e-4)
    assert found.comparison["eval_loss"].difference == pytest.approx(found.eval_loss - expected, rel=1e-3)
    assert found.comparison["eval_loss"].wins == 6


def test_biases_that_were_trained_in_the_base_are_no_part_of_it(tmp_path: Path, run: truetune.Run) -> None:
    folder = tmp_path / "base"
    tiny_model(attention_bias=True).save_pretrained(folder)
    byte_tokenizer(chat_template=CHATML).save_pretrained(folder)
    biased = trained(tmp_path, arithmetic_rows(24), base=folder, bias="all", test_size=6)
    before = truetune.evaluate(biased, generate=False).base
    rows = list(truetune.prepare(biased.directory / "config.yaml").validation)
    plain = plain_losses(tiny_model(attention_bias=True).eval(), rows)
    assert before is not None
    assert before.loss is not None
    assert before.loss.eval_loss == pytest.approx(sum(plain) / sum(each.supervised for each in rows), rel=1e-4)


def test_after_full_training_the_base_is_loaded_beside(knowing: truetune.Run) -> None:
    found = truetune.evaluate(knowing, data=knowing.config.data.path, **QUICK)
    assert found.metrics == {"exact_match": 1.0, "normalized_match": 1.0}
    assert found.base is not None
    assert found.base.metrics["exact_match"] == 0.0
    assert found.comparison["exact_match"].wins == 3
    assert found.comparison["exact_match"].is_sure
    assert found.eval_loss < 0.1 < found.base.loss.eval_loss  # type: ignore[union-attr]


def test_rows_that_were_trained_on_are_told(knowing: truetune.Run, tmp_path: Path) -> None:
    heard = Heard()
    rows = [{"instruction": "hi", "output": "yo"}, {"instruction": "new", "output": "one"}]
    found = truetune.evaluate(knowing, data=rows, generate=False, compare_base=False, listener=heard)
    assert found.learned_rows == 1
    assert "warning: 1 of 2 rows are rows that the model was trained on" in heard.lines


def test_the_worst_row_is_the_one_the_model_knows_least_with_its_file_and_line(
    knowing: truetune.Run, tmp_path: Path
) -> None:
    rows = [{"instruction": "hi", "output": "yo"}, {"instruction": "more", "output": "ok!"}]
    path = write_jsonl(tmp_path / "some.jsonl", [rows[0], {"instruction": "bye", "output": "zzzz"}, rows[1]])
    worst = truetune.evaluate(knowing, data=str(path), generate=False).worst_rows
    assert [(each.where.path, each.where.line) for each in worst][:1] == [(str(path), 2)]
    assert len(worst) == 3
    assert worst[0].answer == "zzzz<|im_end|>"
    assert worst[0].text.endswith("bye<|im_end|>\n<|im_start|>assistant\n")
    assert worst[0].loss > 1 > worst[1].loss


def test_every_turn_of_a_line_that_makes_a_row_of_each_is_its_own(tmp_path: Path) -> None:
    turns = [("hi", "yo"), ("bye", "so long"), ("more", "ok!")]
    pairs = [(("user", asked), ("assistant", said)) for asked, said in turns]
    messages = [{"role": role, "content": text} for pair in pairs for role, text in pair]
    path = str(write_jsonl(tmp_path / "turns.jsonl", [{"messages": messages[:2]}, {"messages": messages}]))
    by_turn = trained(tmp_path, path, one_example_per_turn=True, num_train_epochs=1)
    found = truetune.evaluate(by_turn, data=path, compare_base=False, **QUICK)
    assert [(each.where.line, each.expected) for each in found.answers] == [
        (1, "yo"),
        (2, "yo"),
        (2, "so long"),
        (2, "ok!"),
    ]
    last = [each for each in found.worst_rows if each.answer == "ok!<|im_end|>"]
    assert [(each.where.line, each.text.count("so long")) for each in last] == [(2, 1)]


def test_everything_is_stored_in_the_run_and_nothing_replaced(knowing: truetune.Run) -> None:
    one, two = (truetune.evaluate(knowing, data=knowing.config.data.path, **QUICK) for _ in range(2))
    assert one.path is not None
    assert one.path.parent == knowing.directory / "evaluations"
    assert one.path != two.path
    stored = json.loads(one.path.read_text())
    assert stored["eval_loss"] == one.eval_loss
    assert stored["record"]["data_fingerprint"]
    assert stored["record"]["versions"]["torch"]
    lines = [json.loads(line) for line in one.path.with_suffix(".answers.jsonl").read_text().splitlines()]
    assert [(line["id"], line["answer"], line["where"]["line"]) for line in lines] == [
        (1, "yo", 1),
        (2, "so long", 2),
        (3, "ok!", 3),
    ]


def test_a_reference_s_answers_are_scored_alike(knowing: truetune.Run, tmp_path: Path) -> None:
    data = knowing.config.data.path
    by_id = write_jsonl(
        tmp_path / "ids.jsonl", [{"id": 3, "answer": "x"}, {"id": 1, "answer": "yo"}, {"id": 2, "answer": "y"}]
    )
    in_order = write_jsonl(tmp_path / "order.jsonl", [{"answer": "yo"}, {"answer": "y"}, {"answer": "ok!"}])
    options = {**QUICK, "compare_base": False, "metrics": "exact_match"}
    for path, expected in ((by_id, 1 / 3), (in_order, 2 / 3)):
        found = truetune.evaluate(knowing, data=data, reference=path, **options)
        assert found.reference is not None
        assert found.reference.metrics == {"exact_match": pytest.approx(expected)}
        assert found.metrics == {"exact_match": 1.0}
    short = write_jsonl(tmp_path / "short.jsonl", [{"answer": "yo"}])
    with pytest.raises(DataError, match="1 answers, and not one for each of the 3 rows"):
        truetune.evaluate(knowing, data=data, reference=short, **options)


def test_one_evaluation_s_answers_are_the_next_one_s_reference(knowing: truetune.Run) -> None:
    data = knowing.config.data.path
    first = truetune.evaluate(knowing, data=data, **QUICK)
    assert first.path is not None
    again = truetune.evaluate(knowing, data=data, reference=first.path.with_suffix(".answers.jsonl"), **QUICK)
    assert again.reference is not None
    assert again.reference.metrics == again.metrics


def test_no_row_of_other_data_is_held_out_as_the_run_held_out_its_own(run: truetune.Run) -> None:
    assert run.config.data.test_size == 6
    assert truetune.evaluate(run, data=arithmetic_rows(12), generate=False, compare_base=False).rows == 12


def test_a_row_s_calls_and_tools_are_what_its_answer_is_held_against(knowing: truetune.Run) -> None:
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "find", "arguments": {"x": 1}}}],
    }
    said = {"role": "assistant", "content": "<think>hm</think>\n\nFound."}
    asked = {"role": "user", "content": "look"}
    heard = Heard()
    subject = read_subject(knowing.directory, base_model=None, listener=heard)
    example = {"messages": [asked, said], "tools": [tool]}
    rows = evaluation_rows(subject, data=None, rows=[example], formatting=None, listener=heard)
    assert [each.expected.text for each in rows.asked([0])] == ["Found."]
    assert [each.prompt for each in rows.asked([0])] == ["look"]
    # This template writes no calls, so their row cannot be prepared: the example is taken by itself.
    parsed = parse_example(Record({"messages": [asked, called], "tools": [tool]}, Location("rows", 1)), format="auto")
    assert expected_of(parsed).calls == (Call("find", {"x": 1}),)
    assert expected_of(parsed).tools == (tool,)


def test_metrics_can_be_added_to_those_that_fit(knowing: truetune.Run) -> None:
    found = truetune.evaluate(
        knowing, data=knowing.config.data.path, metrics=["auto", "bleu"], regex="^s", compare_base=False, **QUICK
    )
    assert found.metrics.keys() == {"exact_match", "normalized_match", "regex", "bleu"}
    assert found.metrics["regex"] == pytest.approx(1 / 3)


def test_a_base_is_evaluated_by_itself(knowing: truetune.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_native_bf16", lambda device: False)  # It computes as the run did, in fp32.
    base = truetune.evaluate(knowing.config.model.name_or_path, data=knowing.config.data.path, **QUICK)
    beside = truetune.evaluate(knowing, data=knowing.config.data.path, **QUICK).base
    assert base.base is None
    assert beside is not None
    assert base.loss == beside.loss


def test_a_checkpoint_is_evaluated_on_its_run_s_rows(tmp_path: Path) -> None:
    run = trained(tmp_path, arithmetic_rows(24), test_size=6, save_strategy="steps", save_steps=3, max_steps=6)
    early, late = (truetune.evaluate(f"{run.directory}@{step}", generate=False) for step in (3, 6))
    assert early.path == run.directory / "evaluations" / "validation@3-1.json"
    assert late.eval_loss == pytest.approx(truetune.evaluate(run, generate=False).eval_loss)
    assert early.eval_loss > late.eval_loss


def test_of_many_rows_a_limited_number_is_answered_and_all_are_scored(knowing: truetune.Run) -> None:
    found = truetune.evaluate(knowing, data=arithmetic_rows(30), limit=4, compare_base=False, **QUICK)
    assert (found.rows, len(found.answers)) == (30, 4)
    assert [each.where.line for each in found.answers] == [1, 10, 20, 30]


def test_general_instructions_and_texts_are_asked_of_both(knowing: truetune.Run) -> None:
    gate = truetune.evaluate(knowing, data=knowing.config.data.path, limit=1, max_new_tokens=2).forgetting
    assert gate is not None
    assert gate.instructions == 32
    assert gate.base_general_perplexity is not None
    assert gate.general_perplexity > gate.base_general_perplexity
    assert any("perplexity on general texts" in each for each in gate.warnings())


def test_a_model_of_completions_is_asked_no_instructions(tmp_path: Path) -> None:
    rows = [{"prompt": f"one {n}", "completion": f" two {n}"} for n in range(8)]
    completing = trained(tmp_path, rows, num_train_epochs=1)
    assert truetune.evaluate(completing, data=rows, max_new_tokens=2).forgetting is None
    with pytest.raises(ConfigError, match="models that follow prompts"):
        truetune.evaluate(completing, data=rows, fail_under={"instructions": 0.5})


def test_bare_texts_have_a_loss_and_no_answers(tmp_path: Path) -> None:
    rows = [{"text": f"a bare text {n}"} for n in range(8)]
    reading = trained(tmp_path, rows, num_train_epochs=1)
    found = truetune.evaluate(reading, data=rows)
    assert (found.metrics, found.answers) == ({}, ())
    assert found.eval_loss > 0
    with pytest.raises(ConfigError, match="bare texts"):
        truetune.evaluate(reading, data=rows, metrics="exact_match")


def test_a_folder_of_weights_alone_is_evaluated_with_rows_and_refused_without(
    knowing: truetune.Run, tmp_path: Path
) -> None:
    import shutil

    assert knowing.adapter
    alone = Path(shutil.copytree(knowing.adapter, tmp_path / "alone"))
    found = truetune.evaluate(alone, data=[{"instruction": "hi", "output": "yo"}], **QUICK)
    assert found.metrics["exact_match"] == 1.0
    assert found.path is None
    with pytest.raises(CheckpointError, match="belongs to no run"):
        truetune.evaluate(alone)


def test_a_run_without_validation_rows_says_how_to_go_on(knowing: truetune.Run) -> None:
    with pytest.raises(DataError, match="held no rows out") as raised:
        truetune.evaluate(knowing)
    assert "--data FILE" in str(raised.value.hint)


# --- the command ------------------------------------------------------------------------------------------


def loaded(*_: Any, **__: Any) -> None:
    pytest.fail("weights were loaded")


def command(run: truetune.Run, *words: str) -> int:
    data = str(run.config.data.path)
    return main(["eval", str(run.directory), "--data", data, "--max-new-tokens", "8", "--no-forgetting", *words])


def test_a_threshold_that_is_missed_is_named_and_exits_with_one(
    knowing: truetune.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(knowing, "--fail-under", "exact_match=0.8", "number_match=-1", "--fail-over", "eval_loss=1.2") == 1
    heard = capsys.readouterr().err
    assert "number_match is nan" in heard
    assert "exact_match is" not in heard
    assert command(knowing, "--fail-under", "exact_match=1", "--fail-over", "eval_loss=1.2", "perplexity=3") == 0
    assert command(knowing, "--fail-over", "eval_loss=0") == 1
    assert "must be at most 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--fail-under", "accuracy=1"],
        ["--fail-under", "exact_match"],
        ["--fail-under", "regex=1"],
        ["--metrics", "f1"],
        ["--metrics", "regex"],
        ["--loss-only", "--fail-under", "exact_match=1"],
        ["--fail-under", "instructions=0.5"],
        ["--reference", "nothing.jsonl"],
    ],
)
def test_what_cannot_be_measured_is_refused_before_weights_load(
    knowing: truetune.Run, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "truetune.pipeline.evaluation.evaluate.load_opened", lambda *_, **__: pytest.fail("weights were loaded")
    )
    assert command(knowing, *words) == 2


def test_json_is_one_document_with_the_contract_s_keys(
    knowing: truetune.Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    capsys.readouterr()
    written = tmp_path / "found.json"
    assert command(knowing, "--json", "--output", str(written), "--metrics", "exact_match,rouge_l") == 0
    found = json.loads(capsys.readouterr().out)
    keys = {"eval_loss", "perplexity", "tokens", "rows", "metrics", "worst_rows", "base", "comparison"}
    assert keys <= found.keys()
    assert found["metrics"] == {"exact_match": 1.0, "rouge_l": 1.0}
    assert json.loads(written.read_text()) == found


def test_a_figure_that_is_no_number_is_null_in_the_json(
    knowing: truetune.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> None:
        raise ValueError(name)

    capsys.readouterr()
    assert command(knowing, "--json", "--metrics", "number_match") == 0
    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["metrics"] == {"number_match": None}
    assert found["comparison"]["number_match"]["interval"] == [None, None]


def test_the_terminal_shows_both_models_and_the_rows(
    knowing: truetune.Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert command(knowing) == 0
    shown = capsys.readouterr().out
    for part in ("eval_loss", "exact_match", "3/0/0", "so long", "all of it", "known.jsonl, line 2"):
        assert part in shown


def test_a_base_that_is_gone_is_told_before_anything_is_measured(
    knowing: truetune.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "truetune.pipeline.evaluation.evaluate.load_opened", lambda *_, **__: pytest.fail("weights were loaded")
    )
    with pytest.raises(BackendError):
        truetune.evaluate(knowing, data=[{"instruction": "hi", "output": "yo"}], base_model="/nowhere")
