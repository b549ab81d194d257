"""A training judged by answers: the same training, the same answers as afterwards, and what follows of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import truetune
from conftest import CHATML, TOOLS, arithmetic_rows, byte_tokenizer, tiny_model, write_jsonl
from heard import FAST, Heard
from tiny_runs import LORA, ROWS, Trained, architecture, scored
from traced import W_TOOL, call
from truetune.cli import main
from truetune.config.load import load_config
from truetune.data.examples import IGNORED
from truetune.errors import BackendError, ConfigError
from truetune.model.adapter import LoraSettings, add_adapter
from truetune.model.attention import fit_attention
from truetune.model.fused_blocks import fuse_blocks
from truetune.pipeline.check import prepare
from truetune.pipeline.evaluation.rows import held_out
from truetune.pipeline.evaluation.scored_rows import scored_rows
from truetune.pipeline.inspect import inspect_rows
from truetune.pipeline.review.outcome import outcome
from truetune.pipeline.verify import verify_run
from truetune.runs.checkpoints import state_digests, untimed
from truetune.training.scored import ScoredRows

EACH_STEP: dict[str, Any] = {"validation": ROWS[:3], "eval_strategy": "steps", "eval_steps": 1}


def answers(run: truetune.Run | Path, step: int) -> list[dict[str, Any]]:
    folder = run if isinstance(run, Path) else run.directory / "answers"
    return [json.loads(line) for line in (folder / f"step-{step}.jsonl").read_text().splitlines()]


def logged(run: truetune.Run, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in run.metrics if name in line}


# --- the same training ------------------------------------------------------------------------------------


def _adapted(**changes: Any) -> Any:
    settings = LoraSettings(**{**{name: getattr(LORA, name) for name in LORA.__dataclass_fields__}, **changes})
    model = tiny_model()
    fuse_blocks(model)
    fit_attention(model)
    return add_adapter(model, settings, seed=7)


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("model", "settings", "limit"),
    [
        (lambda: _adapted(lora_dropout=0.1), {}, 8),
        (_adapted, {"gradient_accumulation_steps": 2}, 8),
        (lambda: _adapted(lora_dropout=0.1), {"gradient_checkpointing": True}, 8),
        (lambda: tiny_model(attention_dropout=0.2), {}, 8),
        (lambda: architecture("Gemma2"), {}, 8),
        (lambda: architecture("Bloom"), {"is_padding_free": False}, 8),
        (lambda: tiny_model(max_position_embeddings=32, rope_parameters=DYNAMIC), {}, 100),
    ],
    ids=["dropout", "accumulated", "checkpointing", "full", "windows", "padded", "dynamic frequencies"],
)
def test_a_training_that_answers_is_the_same_to_the_bit(
    model: Callable[[], Any], settings: dict[str, Any], limit: int, tmp_path: Path
) -> None:
    quiet = Trained(tmp_path / "a", ROWS, model=model(), **EACH_STEP, **settings)
    asked = scored(ROWS[:5], tmp_path / "answers", limit=limit)
    answering = Trained(tmp_path / "b", ROWS, model=model(), scored=asked, **EACH_STEP, **settings)
    assert torch.equal(answering.weights(), quiet.weights())
    for name in ("loss", "grad_norm"):
        assert answering.logged(name) == quiet.logged(name)
    pairs = list(zip(answering.lines, quiet.lines, strict=True))
    assert [a["eval_loss"] for a, _ in pairs if "eval_loss" in a] == [
        b["eval_loss"] for _, b in pairs if "eval_loss" in b
    ]
    assert len(list((tmp_path / "answers").iterdir())) == answering.result.steps + 1


def test_fewer_rows_at_a_time_where_memory_runs_out_give_the_same_answers(tmp_path: Path) -> None:
    largest = 0

    def refuse(_: Any, args: Any, named: Any) -> None:
        nonlocal largest
        ids = named["input_ids"] if "input_ids" in named else args[0]
        if ids.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. (as a test)")
        largest = max(largest, ids.shape[0])

    settings = {**EACH_STEP, "eval_steps": 100}
    plenty = Trained(tmp_path / "a", ROWS[:2], scored=scored(ROWS[:8], tmp_path / "plenty"), **settings)
    model = tiny_model()
    model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    scarce = Trained(tmp_path / "b", ROWS[:2], model=model, scored=scored(ROWS[:8], tmp_path / "few"), **settings)
    assert largest == 2
    assert [warning[:13] for warning in scarce.heard.warnings] == ["out of memory"] * 3
    assert scarce.heard.warnings[-1].endswith("2 rows at a time at most")
    assert answers(tmp_path / "few", 0) == answers(tmp_path / "plenty", 0)
    assert plenty.heard.warnings == []


def test_where_not_even_one_row_fits_the_run_ends_with_what_may_help(tmp_path: Path) -> None:
    model = tiny_model()

    def refuse(_: Any, args: Any, named: Any) -> None:
        if named.get("use_cache"):
            raise torch.OutOfMemoryError("CUDA out of memory. (as a test)")

    model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    with pytest.raises(BackendError, match="one at a time") as error:
        Trained(tmp_path, ROWS[:2], model=model, scored=scored(ROWS[:2], tmp_path / "answers"), **EACH_STEP)
    assert "evaluation.generate_max_new_tokens" in str(error.value.hint)


# --- the rows and the answers are those of eval -----------------------------------------------------------


def _base(folder: Path, template: str = CHATML, **sizes: Any) -> Path:
    tiny_model(**{"hidden_size": 64, "intermediate_size": 128, **sizes}).save_pretrained(folder)
    byte_tokenizer(chat_template=template).save_pretrained(folder)
    return folder


CHATS = [
    {
        "messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"yes, {n}"}]
        * (1 + n % 3)
    }
    for n in range(6)
]


@pytest.mark.parametrize("train_on", ["assistant", "last_turn"])
@pytest.mark.parametrize("rows", [CHATS, arithmetic_rows(6)], ids=["chats", "instructions"])
def test_a_row_is_asked_by_the_ids_that_inspect_shows_before_its_last_answer(
    rows: list[dict[str, Any]], train_on: str, tiny_base: Path, tmp_path: Path
) -> None:
    path = str(write_jsonl(tmp_path / "held.jsonl", rows))
    settings = {"model.name_or_path": str(tiny_base), "data.path": path, "data.train_on": train_on}
    config = load_config(settings={**settings, "data.validation_path": path, "evaluation.generate": 4}).config
    found = _scored(config, tmp_path)
    assert found is not None
    shown = inspect_rows(config, limit=6).rows
    places = [0, 1, 3, 5]
    assert [row.where.line for row in found.rows] == [place + 1 for place in places]
    for row, place in zip(found.rows, places, strict=True):
        tokens = shown[place].tokens
        last = max(n for n, label in enumerate(tokens.labels) if label != IGNORED)
        start = max(n for n in range(last) if tokens.labels[n] == IGNORED) + 1
        assert row.prompt_ids == tuple(tokens.input_ids[:start])
        assert row.expected.text == (f"yes, {place}" if rows is CHATS else str(2 * place + 1))


def _scored(config: Any, folder: Path) -> ScoredRows | None:
    prepared = prepare(config, listener=Heard())
    rows = held_out(config, prepared, listener=Heard())
    return scored_rows(rows, context_length=None, folder=folder / "answers", listener=Heard())


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> truetune.Run:
    """A run that learns its rows by heart, is validated on them, and ends when it knows them."""
    folder = tmp_path_factory.mktemp("judged")
    rows = [{"id": f"row {n}", "instruction": ask, "output": say} for n, (ask, say) in enumerate(KNOWN)]
    path = str(write_jsonl(folder / "rows.jsonl", rows))
    return truetune.train(
        model=str(_base(folder / "base")),
        data=path,
        validation_path=path,
        output_dir=folder / "run",
        method="full",
        precision="fp32",
        learning_rate=1e-2,
        num_train_epochs=150,
        per_device_train_batch_size=3,
        eval_strategy="steps",
        eval_steps=10,
        save_strategy="steps",
        save_steps=10,
        save_total_limit=None,
        load_best_model_at_end=True,
        early_stopping_patience=3,
        generate=3,
        generate_max_new_tokens=12,
        metric_for_best_model="exact_match",
    )


KNOWN = [("hi", "yo"), ("bye", "so long"), ("more", "ok!")]


def test_the_metrics_are_those_that_eval_finds_of_the_same_answers(judged: truetune.Run) -> None:
    found = truetune.evaluate(judged, limit=3, max_new_tokens=12, forgetting=False, compare_base=False)
    best = judged.best_step
    assert best is not None
    kept = answers(judged, best)
    assert [line["answer"] for line in kept] == [each.answer for each in found.answers]
    assert [line["scores"] for line in kept] == [dict(each.scores) for each in found.answers]
    for name, value in found.metrics.items():
        assert logged(judged, f"eval_{name}")[best] == value
    assert [(line["id"], line["prompt"], line["expected"]) for line in kept] == [
        (f"row {n}", ask, say) for n, (ask, say) in enumerate(KNOWN)
    ]


def test_answers_in_the_middle_are_those_of_the_checkpoint_there(judged: truetune.Run) -> None:
    step = 10
    found = truetune.evaluate(
        f"{judged.directory}@{step}", limit=3, max_new_tokens=12, forgetting=False, compare_base=False
    )
    assert [line["answer"] for line in answers(judged, step)] == [each.answer for each in found.answers]
    assert all(line["step"] == step for line in answers(judged, step))


def test_an_evaluation_of_a_training_is_a_reference_to_another(judged: truetune.Run) -> None:
    reference = judged.directory / "answers" / "step-0.jsonl"
    found = truetune.evaluate(
        judged, limit=3, max_new_tokens=12, forgetting=False, compare_base=False, reference=str(reference)
    )
    assert found.reference is not None
    assert found.reference.metrics["exact_match"] == 0.0


# --- what follows of them ---------------------------------------------------------------------------------


def test_a_run_stops_when_its_answers_no_longer_get_better(judged: truetune.Run) -> None:
    matches = logged(judged, "eval_exact_match")
    best = next(step for step, value in matches.items() if value == 1.0)
    record = json.loads((judged.directory / "run.json").read_text())
    assert (record["metric_for_best_model"], record["best_metric"]) == ("eval_exact_match", 1.0)
    assert (record["best_step"], judged.best_step, record["best_eval_loss"]) == (best, best, None)
    assert judged.steps == best + 3 * 10 < record["total_steps"]


def test_the_best_weights_are_those_of_the_best_answers_and_not_of_the_lowest_loss(judged: truetune.Run) -> None:
    losses = logged(judged, "eval_loss")
    assert judged.best_step is not None
    assert min(losses, key=losses.__getitem__) > judged.best_step
    kept, saved = (
        torch.cat([each.flatten() for each in _tensors(folder).values()])
        for folder in (judged.directory / "checkpoints" / f"checkpoint-{judged.best_step}", judged.adapter)
    )
    assert torch.equal(kept, saved)


def _tensors(folder: Path | None) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    assert folder is not None
    return dict(sorted(load_file(folder / "model.safetensors").items()))


def test_the_end_is_told_with_the_figure_that_decided(judged: truetune.Run) -> None:
    told = dict(outcome(judged.directory).learned)["best"]
    assert told == f"eval_exact_match 1 at step {judged.best_step}, whose weights these are"


CALLS = [
    {
        "messages": [{"role": "user", "content": ask}, call("w", {"city": city}, "")],
        "tools": [W_TOOL],
    }
    for ask, city in (("Oslo?", "Oslo"), ("Rome?", "Rome"))
]


def test_tool_calls_are_parsed_back_and_held_against_the_messages(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "calls.jsonl", CALLS))
    run = truetune.train(
        model=str(_base(tmp_path / "base", TOOLS)),
        data=path,
        validation_path=path,
        output_dir=tmp_path / "run",
        method="full",
        precision="fp32",
        learning_rate=1e-2,
        max_steps=60,
        eval_strategy="steps",
        eval_steps=60,
        save_strategy="no",
        generate=2,
        generate_max_new_tokens=80,
    )
    assert logged(run, "eval_tool_calls") == {0: 0.0, 60: 1.0}
    assert [line["calls"] for line in answers(run, 0)] == [[], []]
    for line, city in zip(answers(run, 60), ("Oslo", "Rome"), strict=True):
        assert line["calls"] == line["expected_calls"] == [{"name": "w", "arguments": {"city": city}}]
        assert line["scores"] == {"tool_calls": 1.0}
        assert line["stop_reason"] == "stop"


# --- going on -----------------------------------------------------------------------------------------------

ANSWERING: dict[str, Any] = {
    **FAST,
    "max_steps": 8,
    "test_size": 6,
    "lora_dropout": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": None,
    "generate": 4,
    "generate_max_new_tokens": 6,
    "load_best_model_at_end": True,
}


@pytest.fixture(scope="module")
def whole(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> truetune.Run:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return truetune.train(model=str(tiny_base), data=rows, output_dir=folder, **ANSWERING)


@pytest.fixture
def crashed(whole: truetune.Run, tmp_path: Path) -> Path:
    """The run as a crash behind its fourth step would have left it, with answers that were given since."""
    copy = tmp_path / "crashed"
    shutil.copytree(whole.directory, copy)
    shutil.rmtree(copy / "adapter")
    for step in (6, 8):
        shutil.rmtree(copy / "checkpoints" / f"checkpoint-{step}")
    for step in (5, 6):
        (copy / "answers" / f"step-{step}.jsonl").write_text("{}\n")
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "status": "running"}))
    return copy


def test_a_resumed_run_has_the_answers_of_an_uninterrupted_one(whole: truetune.Run, crashed: Path) -> None:
    run = truetune.train(crashed / "config.yaml", output_dir=crashed, resume="newest")
    ends = [state_digests(each.directory / "checkpoints" / "checkpoint-8") for each in (run, whole)]
    assert ends[0] == ends[1]
    assert [untimed(line) for line in run.metrics] == [untimed(line) for line in whole.metrics]
    files = [sorted(path.name for path in (each.directory / "answers").iterdir()) for each in (run, whole)]
    assert files[0] == files[1] == [f"step-{step}.jsonl" for step in (0, 2, 4, 6, 8)]
    for step in (0, 2, 4, 6, 8):
        assert answers(run, step) == answers(whole, step)


def test_a_best_by_another_figure_is_forgotten_when_the_figure_changes(whole: truetune.Run, crashed: Path) -> None:
    heard = Heard()
    options = {"metric_for_best_model": "eval_exact_match", "listener": heard}
    run = truetune.train(crashed / "config.yaml", output_dir=crashed, resume="newest", **options)
    assert "the best so far, was not the best by eval_exact_match" in heard.text()
    assert (run.best_metric, run.best_step) == (logged(run, "eval_exact_match")[6], 6)


def test_starting_again_takes_old_answers_away(whole: truetune.Run, crashed: Path) -> None:
    options = {"max_steps": 1, "generate": None, "overwrite": True}
    truetune.train(crashed / "config.yaml", output_dir=crashed, **options)
    assert not (crashed / "answers").exists()


def test_a_run_that_answers_can_be_verified_and_its_plan_probed(whole: truetune.Run) -> None:
    assert verify_run(whole.directory, proof_steps=2).is_sound
    config = load_config(whole.directory / "config.yaml").config
    judged_by = config.evaluation.model_copy(update={"metric_for_best_model": "eval_exact_match"})
    found = truetune.plan(config.model_copy(update={"evaluation": judged_by}), probe=True)
    amount, probed = found.plan.amount, found.probed
    assert 4 <= amount.answer_tokens <= 4 * 6
    read = amount.evaluations * amount.evaluation_tokens * probed.evaluation.seconds / probed.evaluation.tokens
    assert found.duration.evaluating > 1.01 * read
    assert found.as_json()["answer_tokens"] == amount.answer_tokens


# --- refused, or told, before any weights load --------------------------------------------------------------


def _refused(base: Path, data: Any, tmp_path: Path, **settings: Any) -> str:
    with pytest.raises(ConfigError) as error:
        truetune.train(
            model=str(base), data=data, output_dir=tmp_path / "run", test_size=3, generate=2, **{**FAST, **settings}
        )
    assert not (tmp_path / "run" / "run.json").exists()
    return str(error.value)


def test_rows_that_ask_for_nothing_cannot_be_answered(tiny_base: Path, tmp_path: Path) -> None:
    texts = [{"text": f"line {n} of a text"} for n in range(12)]
    assert "evaluation.generate: no validation row asks" in _refused(tiny_base, texts, tmp_path)


@pytest.mark.parametrize(
    "settings", [{"generate_metrics": ["number_match"]}, {"metric_for_best_model": "eval_tool_calls"}]
)
def test_a_metric_that_says_nothing_of_the_rows_is_refused(
    settings: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    words = [{"instruction": f"Name {n}", "output": "ab" * (1 + n % 4)} for n in range(12)]
    assert "says nothing of these rows" in _refused(tiny_base, words, tmp_path, **settings)


def test_without_validation_rows_it_trains_on_and_says_so(tiny_base: Path, tmp_path: Path) -> None:
    heard = Heard()
    run = truetune.train(
        model=str(tiny_base), data=arithmetic_rows(8), output_dir=tmp_path / "run", generate=2, max_steps=1,
        listener=heard, metric_for_best_model="exact_match", **FAST,
    )  # fmt: skip
    assert "warning: evaluation.generate: there are no validation rows to answer" in heard.lines
    assert run.status == "finished"
    assert (run.best_metric, run.metric_for_best_model) == (None, None)


def test_prompts_that_leave_no_room_are_left_out_and_told(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "a" * (4 + 30 * (n == 2)), "output": "b"} for n in range(4)]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    settings = {"model.name_or_path": str(tiny_base), "data.path": path, "data.validation_path": path}
    config = load_config(settings={**settings, "evaluation.generate": 4}).config
    heard, prepared = Heard(), prepare(config, listener=Heard())
    held = held_out(config, prepared, listener=heard)
    longest = len(prepared.validation[0].input_ids) + 3
    found = scored_rows(held, context_length=longest, folder=tmp_path, listener=heard)
    assert found is not None
    assert [row.where.line for row in found.rows] == [1, 2, 4]
    assert all(row.limit + len(row.prompt_ids) <= longest for row in found.rows)
    assert "warning: evaluation.generate: 1 rows are not answered" in heard.text()


def test_rows_from_python_and_formatted_ones_are_answered_too(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"q": f"Add {n}", "a": str(n)} for n in range(12)]
    run = truetune.train(
        model=str(tiny_base), data=iter(rows), output_dir=tmp_path / "run", test_size=4, generate=3, max_steps=1,
        generate_max_new_tokens=4, formatting=lambda row: {"prompt": row["q"], "completion": row["a"]}, **FAST,
    )  # fmt: skip
    told = answers(run, 1)
    assert len(told) == 3
    assert all(line["prompt"] == f"Add {line['expected']}" for line in told)


def test_the_command_line_takes_it(
    tiny_base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--model", str(tiny_base), "--data", str(rows), "--output-dir", str(tmp_path / "run")]
    words += ["max_steps=1", "test_size=4", "generate=2", "generate_metrics=[exact_match, bleu]"]
    words += ["generate_max_new_tokens=4", "metric_for_best_model=bleu", "precision=fp32"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "2 validation rows are answered at each evaluation, and scored by exact_match, bleu (as asked for)" in err
    assert "best         eval_bleu 0" in out
    assert (tmp_path / "run" / "answers" / "step-1.jsonl").is_file()
