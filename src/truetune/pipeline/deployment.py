"""What a config's adapter meets where it is to be served, held against it before anything is trained."""

from collections.abc import Sequence

from truetune.config.schema import Config
from truetune.errors import ConfigError
from truetune.model.load import ModelFacts
from truetune.model.shape import ModelShape
from truetune.planning.deployment import AdapterFacts, Obstacle, obstacles


def require_servable(config: Config, facts: ModelFacts, shape: ModelShape) -> None:
    """ConfigError with all that keeps the adapter from being served; none yet of a rank that the rows will choose."""
    if config.adapter.method == "full" or config.adapter.r != "auto":
        serving_warnings(config, facts, shape)


def serving_warnings(config: Config, facts: ModelFacts, shape: ModelShape) -> tuple[str, ...]:
    """What serving the run's adapter at `config.deploy` takes, a line each. The rank must have been chosen.

    Raises ConfigError with all that keeps it from being served there.
    """
    if config.deploy is None:
        return ()
    found = obstacles(config.deploy, _adapter_facts(config, facts, shape))
    if errors := [each for each in found if each.severity == "error"]:
        raise ConfigError(
            f"deploy: {config.deploy} cannot serve the adapter that this run would train:\n{_lines(errors)}",
            hint="change these settings, or leave deploy out",
        )
    return tuple(map(told_obstacle, found))


def _lines(found: Sequence[Obstacle]) -> str:
    return "\n".join(map(told_obstacle, found))


def told_obstacle(obstacle: Obstacle) -> str:
    """In a line, for people."""
    return f"{obstacle.setting}: {obstacle.why} ({obstacle.source}): {obstacle.remedy}"


def _adapter_facts(config: Config, facts: ModelFacts, shape: ModelShape) -> AdapterFacts:
    """No run of truetune's adds tokens."""
    adapter = config.adapter
    is_lora = adapter.method == "lora"
    return AdapterFacts(
        method=adapter.method,
        r=int(adapter.r) if is_lora else 0,
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
        bias=adapter.bias,
        modules_to_save=adapter.modules_to_save,
        target_modules=adapter.target_modules,
        target_parameters=adapter.target_parameters,
        init_lora_weights=adapter.init_lora_weights,
        adds_tokens=False,
        is_mixture=shape.blocks == "mixture",
        model_type=facts.model_type,
    )
