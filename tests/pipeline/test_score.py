"""The base model's loss of each row's answers: exact, ranked, and told where a row stands out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import arithmetic_rows, write_jsonl
from heard import Heard
from truetune.config.load import load_config
from truetune.data.examples import Location, Tokenized
from truetune.errors import ConfigError
from truetune.inference.losses import row_losses
from truetune.pipeline.check import check_rows
from truetune.pipeline.score import RowScore, Scores


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))


def checked(data: Path, model: Any, *, score: int, listener: Any = None) -> Any:
    settings = {"model.name_or_path": str(model), "data.path": str(data), "training.precision": "fp32"}
    return check_rows(load_config(None, settings=settings).config, score=score, listener=listener)


def test_a_row_s_loss_is_that_of_its_learned_tokens(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    ids = [7, 8, 9, 10, 11, 12]
    rows = [Tokenized(ids, [-100, -100, -100, 10, -100, 12]), Tokenized(ids[:3], [-100, 8, 9])]
    with torch.no_grad():
        expected = [
            model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss.item()
            for row in rows
        ]
    assert row_losses(model, rows, pad_token_id=258).means.tolist() == pytest.approx(expected, rel=1e-5)


def test_rows_are_spread_over_the_data_and_ranked_with_their_lines(tiny_base: Path, tmp_path: Path) -> None:
    data, heard = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(30)), Heard()
    stats = checked(data, tiny_base, score=10, listener=heard).report.stats["score"]
    assert (stats["rows"], stats["rows_scored"]) == (30, 10)
    losses = [score["loss"] for score in stats["most_surprising"]]
    assert losses == sorted(losses, reverse=True)
    assert stats["least_surprising"] == stats["most_surprising"][::-1]
    lines = sorted(score["where"]["line"] for score in stats["most_surprising"])
    assert (lines[0], lines[-1], len(set(lines))) == (1, 30, 10)
    assert stats["mean_loss"] == pytest.approx(sum(losses) / 10)


def scores(*losses: float) -> Scores:
    ranked = sorted(enumerate(losses, start=1), key=lambda item: -item[1])
    return Scores(tuple(RowScore(Location("a.jsonl", line), loss, 5) for line, loss in ranked), len(losses))


def test_a_loss_far_above_the_others_and_one_near_nothing_are_findings() -> None:
    usual = [1.0 + number / 50 for number in range(30)]
    found = [(problem.rule, problem.where.line) for problem in scores(*usual, 9.0, 0.01).problems()]
    assert found == [("surprising-answer", 31), ("known-answer", 32)]
    assert list(scores(*usual, 1.9, 0.5).problems()) == []
    assert list(scores(1.0, 9.0).problems()) == []


def test_scoring_without_a_model_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a model"):
        checked(tmp_path / "none.jsonl", "none", score=10)
