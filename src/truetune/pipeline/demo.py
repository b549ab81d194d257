"""`truetune demo`: a real model, real rows, the defaults a user gets; its answers before and after."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from truetune.config.load import load_config
from truetune.data.demo import demo_rows
from truetune.inference.generate import Sampling, TrainedModel, load_trained
from truetune.listener import Listener
from truetune.model.source import DEMO
from truetune.pipeline.run import Run
from truetune.pipeline.train import train_run
from truetune.runs.directory import next_directory
from truetune.runs.log import RunLog

_SHOWN, _LONGEST_ANSWER = 4, 48


@dataclass(frozen=True, slots=True)
class DemoExample:
    """One held-out request, answered by both models."""

    request: str
    expected: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """`before` and `after` are the shares of `held_out` requests answered exactly."""

    run: Run
    held_out: int
    before: float
    after: float
    examples: tuple[DemoExample, ...]


def run_demo(
    *,
    output_dir: Path | None = None,
    overwrite: bool = False,
    seed: int = 42,
    overrides: Sequence[str] = (),
    listener: Listener,
    log: RunLog | None = None,
) -> DemoOutcome:
    """Fine-tunes the demo model on generated rows and scores it on requests whose words it never saw."""
    rows = demo_rows(seed=seed)
    requests = [row["instruction"] for row in rows.held_out]
    expected = [row["output"] for row in rows.held_out]
    settings = {
        "model.name_or_path": DEMO,
        "output_dir": str(output_dir or next_directory(DEMO)),
        "training.seed": seed,
        # A step's rows at once: its rows are short, and one large product is faster than four small ones.
        "training.per_device_train_batch_size": 8,
        "training.gradient_accumulation_steps": 1,
    }
    config = load_config(settings=settings, overrides=overrides).config
    listener.say("it trains first, then both models are asked (weights are unpacked on the very first run)")
    run = train_run(config, rows=rows.train, overwrite=overwrite, listener=listener, log=log)
    tuned = load_trained(run.directory)
    with tuned.without_adapter() as base:
        before = _answers(base, requests, listener, stage="asking the base model")
    after = _answers(tuned, requests, listener, stage="asking the fine-tuned model")
    compared = [DemoExample(*row) for row in zip(requests, expected, before, after, strict=True)]
    return DemoOutcome(
        run=run,
        held_out=len(requests),
        before=_exact(before, expected),
        after=_exact(after, expected),
        examples=tuple(compared[:_SHOWN]),
    )


def _answers(model: TrainedModel, requests: Sequence[str], listener: Listener, *, stage: str) -> list[str]:
    """Each request's greedy answer; all are asked together, and told of as they end."""
    examples = [model.as_example(request) for request in requests]
    answers: dict[int, str] = {}
    sampling = Sampling(max_new_tokens=_LONGEST_ANSWER)
    for number, answer in model.answers(enumerate(examples), sampling=sampling, batch_size=len(requests)):
        answers[number] = answer.text
        listener.progress(stage, len(answers), len(requests))
    return [answers[number] for number in range(len(requests))]


def _exact(answers: Sequence[str], expected: Sequence[str]) -> float:
    pairs = zip(answers, expected, strict=True)
    return sum(answer.strip() == right for answer, right in pairs) / len(expected)
