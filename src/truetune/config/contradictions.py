"""Settings that are each right and cannot hold together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from truetune.config.schema import Config, SourceConfig, is_named, lora_kinds, value_of
from truetune.config.sharding import sharding_obstacles, zero_obstacles


@dataclass(frozen=True, slots=True)
class Contradiction:
    """What cannot hold, and the settings that say so, by dotted name."""

    text: str
    names: tuple[str, ...]


def contradictions(config: Config) -> Iterator[Contradiction]:
    """Everything in a config that cannot hold together."""
    yield from _model_and_data(config)
    yield from _stream(config)
    yield from _adapter(config)
    yield from _target_parameters(config)
    yield from _strategy(config)
    yield from _evaluation(config)
    yield from _answers(config)


_STREAM = "data.streaming"
_4BIT, _8BIT, _METHOD = "model.load_in_4bit", "model.load_in_8bit", "adapter.method"
_EVALUATED, _SAVED = "evaluation.eval_strategy", "checkpoints.save_strategy"
_BEST, _PATIENCE = "evaluation.load_best_model_at_end", "evaluation.early_stopping_patience"
_GENERATE, _METRICS = "evaluation.generate", "evaluation.generate_metrics"
_BEST_BY = "evaluation.metric_for_best_model"


def _model_and_data(config: Config) -> Iterator[Contradiction]:
    model, data = config.model, config.data
    if model.load_in_4bit and model.load_in_8bit:
        yield Contradiction(f"{_4BIT} and {_8BIT} are both true: choose one", (_4BIT, _8BIT))
    if data.validation_path and data.test_size:
        names = "data.validation_path", "data.test_size"
        yield Contradiction(f"{' and '.join(names)} are both set: rows are validated from one place", names)


def _stream(config: Config) -> Iterator[Contradiction]:
    """What cannot be had of rows that are never all there at once."""
    data = config.data
    if not data.streaming:
        return
    if config.training.max_steps == -1:
        text = f"{_STREAM} needs training.max_steps: how many steps a pass has is not known before its last row"
        yield Contradiction(text, (_STREAM, "training.max_steps"))
    if data.test_size:
        text = f"{_STREAM} splits no rows off: name validation rows in data.validation_path, not data.test_size"
        yield Contradiction(text, (_STREAM, "data.test_size"))
    for name in ("data.group_by", "data.strict"):
        if value_of(config, name):
            yield Contradiction(f"{name} looks at all rows, which {_STREAM} never has at once", (_STREAM, name))
    if any(place.weight != 1 for place in data.path or () if isinstance(place, SourceConfig)):
        text = f"{_STREAM} takes places one after the other: leave weight out of data.path"
        yield Contradiction(text, (_STREAM, "data.path"))
    yield from _streamed_run(config)


def _streamed_run(config: Config) -> Iterator[Contradiction]:
    """A stream has no rows of its own to validate on, and tells no epochs."""
    if config.evaluation.generate and not config.data.validation_path:
        text = f"{_GENERATE} needs validation rows, which {_STREAM} has in data.validation_path only"
        yield Contradiction(text, (_STREAM, _GENERATE))
    for name in (_EVALUATED, _SAVED):
        if value_of(config, name) == "epoch" and is_named(config, name):
            text = f"{name} is epoch, and where one of {_STREAM} ends is not known before: set it to steps"
            yield Contradiction(text, (_STREAM, name))


def _adapter(config: Config) -> Iterator[Contradiction]:
    adapter, start = config.adapter, config.adapter.init_lora_weights
    source, init, dora = "adapter.init_from", "adapter.init_lora_weights", "adapter.use_dora"
    if adapter.method == "full":
        if adapter.init_from:
            yield Contradiction(f"{source} names an adapter, and {_METHOD}: full trains none", (source, _METHOD))
        for name in (f"adapter.{kind}" for kind in lora_kinds(adapter)):
            yield Contradiction(f"{name} is of a LoRA adapter, and {_METHOD}: full trains none", (name, _METHOD))
    if adapter.init_from and start != "default":
        text = f"{source} goes on from an adapter, and {init}: {start} starts a new one"
        yield Contradiction(text, (source, init))
    stored = next((name for name in (_4BIT, _8BIT) if getattr(config.model, name.partition(".")[2])), None)
    if stored and start not in ("default", "gaussian"):
        text = (
            f"{init}: {start} reads the base's own weights, and {stored} quantises them: "
            "use default or gaussian, or leave one of them out"
        )
        yield Contradiction(text, (init, stored))
    if adapter.use_dora and config.model.load_in_8bit:
        text = f"{dora} does not train over {_8BIT}: use load_in_4bit, or leave one of them out"
        yield Contradiction(text, (dora, _8BIT))
    if start == "orthogonal" and adapter.r != "auto" and adapter.r % 2:
        yield Contradiction(f"{init}: orthogonal needs an even adapter.r (got {adapter.r})", (init, "adapter.r"))


def _target_parameters(config: Config) -> Iterator[Contradiction]:
    name = "adapter.target_parameters"
    if config.adapter.target_parameters and config.adapter.lora_dropout:
        names = (name, "adapter.lora_dropout")
        yield Contradiction(f"{name} take no adapter.lora_dropout: set it to 0", names)
    if config.adapter.target_parameters and config.adapter.use_dora:
        yield Contradiction(f"{name} take no adapter.use_dora: leave one of them out", (name, "adapter.use_dora"))


def _strategy(config: Config) -> Iterator[Contradiction]:
    strategy, offload = "training.strategy", "training.fsdp_cpu_offload"
    if config.training.strategy == "fsdp":
        for obstacle in sharding_obstacles(config):
            text = f"{strategy}: fsdp does not go with {obstacle.name}: {obstacle.reason}"
            yield Contradiction(text, (strategy, obstacle.name))
    elif config.training.fsdp_cpu_offload and config.training.strategy != "auto":
        text = f"{offload} needs {strategy}: fsdp, and {strategy} is {config.training.strategy}"
        yield Contradiction(text, (offload, strategy))
    yield from _deepspeed(config)


def _deepspeed(config: Config) -> Iterator[Contradiction]:
    strategy, settings = "training.strategy", "training.deepspeed"
    if config.training.deepspeed is not None and config.training.strategy in ("ddp", "fsdp"):
        text = f"{settings} is set, and {strategy} is {config.training.strategy}: leave one of them out"
        yield Contradiction(text, (strategy, settings))
    elif config.training.deepspeed is not None or config.training.strategy == "deepspeed":
        for obstacle in zero_obstacles(config):
            text = f"{strategy}: deepspeed does not go with {obstacle.name}: {obstacle.reason}"
            yield Contradiction(text, (strategy, settings, obstacle.name))


def _evaluation(config: Config) -> Iterator[Contradiction]:
    evaluation = config.evaluation
    if evaluation.early_stopping_patience and evaluation.eval_strategy == "no":
        yield Contradiction(f"{_PATIENCE} needs evaluations, and {_EVALUATED} is no", (_PATIENCE, _EVALUATED))
    if evaluation.early_stopping_patience and not evaluation.load_best_model_at_end:
        yield Contradiction(f"{_PATIENCE} needs {_BEST}: true", (_PATIENCE, _BEST))
    if evaluation.load_best_model_at_end:
        yield from _best_model(config)


def _answers(config: Config) -> Iterator[Contradiction]:
    """Answers need rows, and an evaluation to be given in; the best model is judged by what is measured."""
    evaluation, data = config.evaluation, config.data
    best, metrics = evaluation.metric_for_best_model, evaluation.generate_metrics
    if evaluation.generate and evaluation.eval_strategy == "no":
        yield Contradiction(f"{_GENERATE} needs evaluations, and {_EVALUATED} is no", (_GENERATE, _EVALUATED))
    elif evaluation.generate and data.test_size == 0 and not data.validation_path:
        text = f"{_GENERATE} needs validation rows, and data.test_size is 0"
        yield Contradiction(text, (_GENERATE, "data.test_size"))
    if best == "eval_loss":
        return
    if not evaluation.generate:
        text = f"{_BEST_BY}: {best} is measured of answers, and {_GENERATE} asks for none"
        yield Contradiction(text, (_BEST_BY, _GENERATE))
    elif "auto" not in metrics and best not in _figures(metrics):
        yield Contradiction(
            f"{_BEST_BY}: {best} is not among {_METRICS} ({', '.join(metrics)})", (_BEST_BY, _METRICS)
        )


def _figures(metrics: Sequence[str]) -> set[str]:
    """The names under which metrics are logged; json brings json_f1 along."""
    return {f"eval_{name}" for name in (*metrics, *(["json_f1"] if "json" in metrics else []))}


def _best_model(config: Config) -> Iterator[Contradiction]:
    """The best model can only be loaded if it was saved when it was evaluated."""
    evaluation, saving = config.evaluation, config.checkpoints
    evaluated, saved = evaluation.eval_strategy, saving.save_strategy
    steps, save_steps = "evaluation.eval_steps", "checkpoints.save_steps"
    if evaluated == "no":
        yield Contradiction(f"{_BEST} needs evaluations, and {_EVALUATED} is no", (_BEST, _EVALUATED))
    elif saved == "no":
        yield Contradiction(f"{_BEST} needs checkpoints, and {_SAVED} is no", (_BEST, _SAVED))
    elif evaluated != saved:
        text = f"{_BEST} needs one rhythm: {_EVALUATED} is {evaluated}, {_SAVED} is {saved}"
        yield Contradiction(text, (_BEST, _EVALUATED, _SAVED))
    elif evaluated == "steps" and not _is_multiple(saving.save_steps, evaluation.eval_steps):
        text = (
            f"{_BEST} needs {save_steps} ({saving.save_steps}) to be a multiple of {steps} ({evaluation.eval_steps})"
        )
        yield Contradiction(text, (_BEST, steps, save_steps))


def _is_multiple(larger: float, smaller: float) -> bool:
    """Exactly, also for ratios: 0.1 is five times 0.02. A ratio and a number of steps cannot be compared."""
    if (larger < 1) != (smaller < 1):
        return False
    return (Fraction(str(larger)) / Fraction(str(smaller))).denominator == 1
