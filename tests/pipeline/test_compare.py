"""Runs side by side: what differs is told, and a difference is called one only where it exceeds the noise."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import truetune
from conftest import arithmetic_rows, write_jsonl
from heard import FAST
from truetune.cli import main
from truetune.errors import CheckpointError, ConfigError
from truetune.files import write_json
from truetune.inference.bootstrap import compare as compare_rows
from truetune.inference.metrics import mean
from truetune.pipeline.review.compare import RunComparison, Verdict, compare_runs
from truetune.runs.ledger import read_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows to train on; beside them those to validate on, which no seed splits off otherwise."""
    folder = tmp_path_factory.mktemp("compared-data")
    write_jsonl(folder / "test.jsonl", arithmetic_rows(60)[40:])
    return write_jsonl(folder / "train.jsonl", arithmetic_rows(40))


@pytest.fixture(scope="module")
def trained(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, one with a higher rate, and two with other seeds; of the first two, evaluations too."""
    folder = tmp_path_factory.mktemp("compared")
    settings = {**FAST, "num_train_epochs": 2, "save_strategy": "no", "per_device_train_batch_size": 2}
    settings |= {"validation_path": str(data.parent / "test.jsonl"), "gradient_accumulation_steps": 1}
    for name, changes in {
        "first": {},
        "faster": {"learning_rate": 1e-2},
        "seed-7": {"seed": 7},
    }.items():
        truetune.train(model=str(tiny_base), data=data, output_dir=folder / name, **{**settings, **changes})
    for name in ("first", "faster"):
        truetune.evaluate(folder / name, max_new_tokens=4, forgetting=False, compare_base=False)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def verdict(found: RunComparison, figure: str) -> Verdict:
    (one,) = [each for each in found.verdicts if each.figure == figure]
    return one


def figures(found: RunComparison) -> dict[str, tuple[Any, ...]]:
    return {each.name: each.values for each in found.figures}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- a run in the list ------------------------------------------------------------------------------------


def test_a_trained_run_is_in_the_list_as_it_opens(trained: Path) -> None:
    run, entry = truetune.open_run(trained / "first"), read_run(trained / "first")
    assert (entry.status, entry.steps, entry.final_loss) == (run.status, run.steps, run.final_loss)
    assert entry.eval_loss == run.eval_loss
    assert entry.settings["training.learning_rate"] == run.config.training.learning_rate == 1e-3
    assert entry.settings["training.max_steps"] == -1


# --- what differs -----------------------------------------------------------------------------------------


def test_only_what_differs_is_told_of_settings_and_data(trained: Path) -> None:
    found = compare_runs([trained / "first", trained / "faster"])
    assert [(each.name, each.values) for each in found.settings] == [("training.learning_rate", (1e-3, 1e-2))]
    assert (found.data, found.versions, found.hardware) == ((), (), ())


def test_other_versions_hardware_and_data_are_told(runs: Path) -> None:
    record = json.loads((runs / "faster" / "run.json").read_text())
    record["versions"]["torch"] = "2.99"
    record["hardware"]["cpus"] = 999
    record["data"]["fingerprint"] = "other"
    write_json(runs / "faster" / "run.json", record)
    found = compare_runs([runs / "first", runs / "faster"])
    assert [(each.name, each.values[1]) for each in found.versions] == [("torch", "2.99")]
    assert [(each.name, each.values[1]) for each in found.hardware] == [("cpus", 999)]
    assert [(each.name, each.values[1]) for each in found.data] == [("the tokens' fingerprint", "other")]
    assert any("not of the same rows" in note for note in found.notes)


def test_a_run_without_its_config_in_the_record_is_read_from_its_config(runs: Path) -> None:
    for name in ("first", "faster"):
        record = json.loads((runs / name / "run.json").read_text())
        del record["config"]
        write_json(runs / name / "run.json", record)
    found = compare_runs([runs / "first", runs / "faster"])
    assert [(each.name, each.values) for each in found.settings] == [("training.learning_rate", (1e-3, 1e-2))]


def test_a_run_that_has_not_finished_is_compared_and_told(runs: Path) -> None:
    record = json.loads((runs / "faster" / "run.json").read_text())
    kept = {name: record[name] for name in record if name not in ("steps", "final_loss", "eval_loss", "tokens")}
    write_json(runs / "faster" / "run.json", {**kept, "status": "running"})
    found = compare_runs([runs / "first", runs / "faster"])
    total = record["total_steps"]
    assert f"{runs / 'faster'} is dead, after step {total} of {total}" in found.notes


# --- curves -----------------------------------------------------------------------------------------------


def test_losses_are_compared_at_the_same_step_and_after_the_same_tokens(runs: Path) -> None:
    whole = lines(runs / "first")
    losses = {line["step"]: line["loss"] for line in whole if "loss" in line}
    shorter = [line for line in lines(runs / "faster") if line["step"] <= 30]
    (runs / "faster" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shorter))
    last = [line for line in shorter if "loss" in line][-1]
    found = figures(compare_runs([runs / "first", runs / "faster"]))
    assert found["loss at step 30"] == (losses[30], last["loss"])
    tokens = last["num_tokens"]
    assert found[f"loss at {tokens:,} tokens"] == (pytest.approx(losses[30]), last["loss"])
    evaluated = {line["step"]: line["eval_loss"] for line in whole if "eval_loss" in line}
    assert found["eval_loss at step 20"][0] == evaluated[20]
    assert found["eval_loss, lowest"][0] == min(evaluated.values())


def test_a_loss_between_two_logged_ones_is_on_the_line_between(runs: Path) -> None:
    for name, tokens in (("first", (0, 100, 200)), ("faster", (0, 50, 150))):
        logged = [{"step": n, "loss": 3.0 - n, "num_tokens": tokens[n]} for n in range(3)]
        (runs / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))
    found = figures(compare_runs([runs / "first", runs / "faster"]))
    assert found["loss at 150 tokens"] == (pytest.approx(1.5), 1.0)


def test_a_damaged_line_of_metrics_is_an_error_with_its_file(runs: Path) -> None:
    (runs / "faster" / "metrics.jsonl").write_text('{"step": 1, "lo\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(CheckpointError, match=r"faster/metrics\.jsonl is damaged"):
        compare_runs([runs / "first", runs / "faster"])


# --- noise ------------------------------------------------------------------------------------------------


def stored(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluations" / "validation-1.losses.jsonl").read_text().splitlines()]


def test_an_evaluation_keeps_each_row_s_loss(trained: Path, data: Path) -> None:
    rows = stored(trained / "first")
    found = json.loads((trained / "first" / "evaluations" / "validation-1.json").read_text())
    assert len({row["row"] for row in rows}) == len(rows) == found["rows"] == 20
    assert sum(row["tokens"] for row in rows) == found["tokens"]
    assert sum(row["loss"] for row in rows) / found["tokens"] == pytest.approx(found["eval_loss"])


def test_evaluated_runs_are_compared_row_by_row_in_whatever_order_the_rows_are_kept(runs: Path) -> None:
    def of(run: Path) -> np.ndarray:
        return np.array([[row["loss"], row["tokens"]] for row in sorted(stored(run), key=lambda row: row["row"])])

    expected = compare_rows(of(runs / "faster"), of(runs / "first"), mean, higher_is_better=False)
    kept = runs / "faster" / "evaluations" / "validation-1.losses.jsonl"
    kept.write_text("".join(reversed(kept.read_text().splitlines(keepends=True))))
    found = verdict(compare_runs([runs / "first", runs / "faster"]), "validation: eval_loss")
    assert found.difference == pytest.approx(expected.difference)
    assert found.interval == pytest.approx(expected.interval, abs=0.02 * abs(expected.difference))
    assert found.exceeds_noise is expected.is_sure
    assert "20 rows" in found.how


def test_rows_that_only_one_run_was_evaluated_on_are_left_out(runs: Path) -> None:
    kept = runs / "faster" / "evaluations" / "validation-1.losses.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    rows[0]["row"], rows[1]["tokens"] = "another row", rows[1]["tokens"] + 1
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "18 rows" in verdict(compare_runs([runs / "first", runs / "faster"]), "validation: eval_loss").how


def test_scores_are_compared_where_their_figure_is_a_mean_over_rows(runs: Path) -> None:
    for name, right in (("first", 2), ("faster", 14)):
        path = runs / name / "evaluations" / "validation-1.json"
        document = json.loads(path.read_text())
        write_json(path, {**document, "metrics": {"exact_match": right / 20, "bleu": 31.0}})
        answers = path.with_suffix(".answers.jsonl")
        kept = [json.loads(line) for line in answers.read_text().splitlines()]
        scored = [{**line, "scores": {"exact_match": float(n < right), "bleu": 1.0}} for n, line in enumerate(kept)]
        answers.write_text("".join(json.dumps(line) + "\n" for line in scored))
    found = compare_runs([runs / "first", runs / "faster"])
    score = verdict(found, "validation: exact_match")
    assert (score.difference, score.exceeds_noise) == (pytest.approx(0.6), True)
    assert figures(found)["validation: bleu"] == (31.0, 31.0)
    assert not [each for each in found.verdicts if each.figure == "validation: bleu"]


def test_without_rows_of_an_evaluation_the_validation_loss_is_no_verdict(runs: Path) -> None:
    shutil.rmtree(runs / "first" / "evaluations")
    found = verdict(compare_runs([runs / "first", runs / "faster"]), "eval_loss")
    assert (found.exceeds_noise, found.interval) == (None, None)
    assert "truetune eval" in found.how
    entries = [read_run(runs / name) for name in ("first", "faster")]
    assert found.difference == entries[1].eval_loss - entries[0].eval_loss  # type: ignore[operator]


def test_training_losses_on_the_same_batches_are_compared_step_by_step(trained: Path) -> None:
    found = verdict(compare_runs([trained / "first", trained / "faster"]), "training loss")
    assert "on the same batches" in found.how
    assert found.interval is not None
    assert found.interval[0] <= found.difference <= found.interval[1]
    apart = verdict(compare_runs([trained / "faster", trained / "seed-7"]), "training loss")
    assert "each by itself" in apart.how


def test_few_logged_losses_tell_no_noise(runs: Path) -> None:
    for name in ("first", "faster"):
        few = [line for line in lines(runs / name) if line["step"] <= 12]
        (runs / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in few))
    found = verdict(compare_runs([runs / "first", runs / "faster"]), "training loss")
    assert (found.exceeds_noise, found.interval) == (None, None)
    assert "3 logged losses are too few" in found.how


def test_runs_that_differ_in_the_seed_alone_are_what_noise_looks_like(trained: Path) -> None:
    found = compare_runs([trained / "first", trained / "seed-7"])
    assert {each.exceeds_noise for each in found.verdicts} == {False}
    assert any("nothing but the seed" in note for note in found.notes)


def test_what_other_seeds_differ_by_is_held_against_other_differences(runs: Path) -> None:
    def eval_loss(run: str, loss: float) -> None:
        record = json.loads((runs / run / "run.json").read_text())
        write_json(runs / run / "run.json", {**record, "eval_loss": loss})

    shutil.rmtree(runs / "first" / "evaluations")
    three = [runs / name for name in ("first", "faster", "seed-7")]
    eval_loss("first", 2.0)
    eval_loss("seed-7", 2.1)
    for loss, exceeds in ((1.5, True), (1.95, False), (2.2, True)):
        eval_loss("faster", loss)
        found = [each for each in compare_runs(three).verdicts if each.figure == "eval_loss"]
        assert [each.exceeds_noise for each in found] == [exceeds, False]
        assert "0.1 apart" in found[0].how


def test_the_same_run_twice_is_told_to_be_the_same(runs: Path) -> None:
    shutil.copytree(runs / "first", runs / "copy")
    found = compare_runs([runs / "first", runs / "copy"])
    assert (found.settings, found.data) == ((), ())
    assert any("have the same settings, and the same seed" in note for note in found.notes)
    assert {each.difference for each in found.verdicts} == {0.0}
    assert not any(each.exceeds_noise for each in found.verdicts)


# --- the command ------------------------------------------------------------------------------------------


def test_fewer_than_two_runs_or_one_twice_are_refused(trained: Path) -> None:
    for named in ([], ["first"], ["first", "first"]):
        with pytest.raises(ConfigError, match="two runs or more"):
            compare_runs([trained / name for name in named])
    with pytest.raises(CheckpointError, match="holds no run"):
        truetune.compare(trained / "first", trained)


def test_the_comparison_has_a_column_for_each_run_and_a_line_for_each_verdict(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *(str(trained / name) for name in ("first", "faster", "seed-7"))]) == 0
    printed = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert ["settings", "first", "faster", "seed-7"] in printed
    assert ["training.learning_rate", "0.001", "0.01", "0.001"] in printed
    assert ["training.seed", "42", "42", "7"] in printed
    assert ["less first", "difference", "95 %", "more than noise"] in printed
    assert [line[3] for line in printed if line[0] == "seed-7: training loss"] == ["no"]


def test_the_comparison_as_json_is_one_document(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(trained / "first"), str(trained / "faster"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [run["path"] for run in document["runs"]] == [str(trained / "first"), str(trained / "faster")]
    assert document["settings"] == [{"name": "training.learning_rate", "values": [1e-3, 1e-2]}]
    assert {"figure", "difference", "interval", "exceeds_noise", "how"} <= set(document["verdicts"][0])
    assert main(["compare", str(trained / "first")]) == 2
