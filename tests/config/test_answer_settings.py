"""What a training's answers are judged by: settings that hold together, and those that do not."""

from typing import Any, get_args

import pytest

from truetune.config.kinds import Figure, Metric
from truetune.config.load import dump_config, load_config
from truetune.config.schema import Config
from truetune.errors import ConfigError
from truetune.inference.metrics import MEASURED, named_metrics


def config(*overrides: str) -> Config:
    return load_config({"model": "m", "data": {"path": "x.jsonl"}}, overrides=overrides).config


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        config(*overrides)
    assert len(error.value.message.splitlines()) == 1
    return error.value.message


def test_the_metrics_of_a_training_are_those_of_eval_but_a_pattern_s() -> None:
    assert set(get_args(Metric)) == set(MEASURED) - {"regex"}
    assert {metric.name for metric in named_metrics(get_args(Metric))} == set(get_args(Metric))
    assert set(get_args(Figure)) == {"eval_loss", *(f"eval_{name}" for name in get_args(Metric))}


def test_nothing_is_generated_unless_it_is_asked_for() -> None:
    evaluation = config().evaluation
    assert (evaluation.generate, evaluation.metric_for_best_model) == (None, "eval_loss")
    assert config("generate=0").evaluation.generate == 0


@pytest.mark.parametrize("name", ["exact_match", "eval_exact_match"])
def test_the_figure_is_named_with_its_prefix_or_without_as_transformers_does(name: str) -> None:
    assert (
        config("generate=5", f"metric_for_best_model={name}").evaluation.metric_for_best_model == "eval_exact_match"
    )
    assert config("metric_for_best_model=loss").evaluation.metric_for_best_model == "eval_loss"


def test_metrics_are_one_name_or_a_list_and_are_written_as_they_were() -> None:
    assert config("generate_metrics=bleu").evaluation.generate_metrics == ("bleu",)
    listed = config("generate=5", "generate_metrics=[auto, rouge_l]", "metric_for_best_model=rouge_l")
    assert listed.evaluation.generate_metrics == ("auto", "rouge_l")
    text = dump_config(listed)
    assert "generate_metrics: [auto, rouge_l]" in text or "- rouge_l" in text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["generate=-1"], "evaluation.generate must be a whole number of at least 0 or null (got -1)"),
        (["generate_metrics=exact_mach"], "did you mean exact_match?"),
        (["generate_metrics=[auto, blue]"], "did you mean bleu?"),
        (["generate_metrics=regex"], "evaluation.generate_metrics"),
        (["generate_metrics=[]"], "evaluation.generate_metrics"),
        (["metric_for_best_model=eval_exact_mach"], "did you mean eval_exact_match?"),
        (["greater_is_better=true"], "it follows from evaluation.metric_for_best_model"),
        (["predict_with_generate=true"], "set evaluation.generate"),
        (
            ["generate=5", "eval_strategy=no"],
            "evaluation.generate needs evaluations, and evaluation.eval_strategy is no",
        ),
        (["generate=5", "test_size=0"], "evaluation.generate needs validation rows, and data.test_size is 0"),
        (
            ["metric_for_best_model=exact_match"],
            "evaluation.metric_for_best_model: eval_exact_match is measured of answers, and evaluation.generate asks",
        ),
        (
            ["generate=5", "generate_metrics=[bleu, json]", "metric_for_best_model=exact_match"],
            "eval_exact_match is not among evaluation.generate_metrics (bleu, json)",
        ),
    ],
)
def test_what_cannot_hold_is_told(overrides: list[str], words: str) -> None:
    assert words in refused(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["generate=5", "metric_for_best_model=bleu"],
        ["generate=5", "generate_metrics=json", "metric_for_best_model=json_f1"],
        ["generate=5", "generate_metrics=[auto, json]", "metric_for_best_model=exact_match"],
        ["generate=5", "test_size=0", "validation_path=v.jsonl"],
        ["generate=0", "eval_strategy=no"],
    ],
)
def test_what_can_hold_is_taken(overrides: list[str]) -> None:
    assert config(*overrides).evaluation


def test_a_contradiction_stands_at_the_last_of_its_settings(tmp_path: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nevaluation:\n  eval_strategy: 'no'\n  generate: 5\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:4: evaluation\.generate needs evaluations"):
        load_config(path)
