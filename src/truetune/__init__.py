"""truetune: fine-tune language models on your own data, and be told the truth about it.

    import truetune

    run = truetune.train(model="demo", data=[{"instruction": "Say hi", "output": "hi"}, …], num_train_epochs=1)
    print(truetune.load(run).generate("Say hi").text)

Names are loaded when first used, so that importing truetune costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truetune.api import (
        check,
        find_lr,
        fix,
        import_config,
        inspect,
        load,
        open_run,
        plan,
        prepare,
        train,
    )
    from truetune.config.schema import Config
    from truetune.data.rules import Report
    from truetune.errors import (
        BackendError,
        CheckpointError,
        ConfigError,
        DataError,
        TemplateError,
        TruetuneError,
    )
    from truetune.inference.generate import TrainedModel
    from truetune.migrate.importer import Imported
    from truetune.pipeline.find_lr import RangeTest
    from truetune.pipeline.forecast import Forecast
    from truetune.pipeline.outline import Outline
    from truetune.pipeline.prepare import PreparedDataset
    from truetune.pipeline.train import Run

_HOMES = {
    "Config": "truetune.config.schema",
    "Run": "truetune.pipeline.train",
    "TrainedModel": "truetune.inference.generate",
    "PreparedDataset": "truetune.pipeline.prepare",
    "RangeTest": "truetune.pipeline.find_lr",
    "Forecast": "truetune.pipeline.forecast",
    "Outline": "truetune.pipeline.outline",
    "Report": "truetune.data.rules",
    "Imported": "truetune.migrate.importer",
    **dict.fromkeys(
        ("check", "find_lr", "fix", "import_config", "inspect", "load", "open_run", "plan", "prepare", "train"),
        "truetune.api",
    ),
    **dict.fromkeys(
        ("BackendError", "CheckpointError", "ConfigError", "DataError", "TemplateError", "TruetuneError"),
        "truetune.errors",
    ),
}

__all__ = [
    "BackendError",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "Forecast",
    "Imported",
    "Outline",
    "PreparedDataset",
    "RangeTest",
    "Report",
    "Run",
    "TemplateError",
    "TrainedModel",
    "TruetuneError",
    "check",
    "find_lr",
    "fix",
    "import_config",
    "inspect",
    "load",
    "open_run",
    "plan",
    "prepare",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'truetune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
