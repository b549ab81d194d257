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
        evaluate,
        export,
        find_lr,
        fix,
        import_config,
        inspect,
        load,
        merge,
        open_run,
        plan,
        prepare,
        publish,
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
    from truetune.pipeline.evaluation import Evaluation
    from truetune.pipeline.export import Export
    from truetune.pipeline.find_lr import RangeTest
    from truetune.pipeline.forecast import Forecast
    from truetune.pipeline.merge import Merged
    from truetune.pipeline.outline import Outline
    from truetune.pipeline.prepare import PreparedDataset
    from truetune.pipeline.publish import Published
    from truetune.pipeline.train import Run

_HOMES = {
    "Config": "truetune.config.schema",
    "Run": "truetune.pipeline.train",
    "TrainedModel": "truetune.inference.generate",
    "PreparedDataset": "truetune.pipeline.prepare",
    "Evaluation": "truetune.pipeline.evaluation",
    "Export": "truetune.pipeline.export",
    "RangeTest": "truetune.pipeline.find_lr",
    "Forecast": "truetune.pipeline.forecast",
    "Merged": "truetune.pipeline.merge",
    "Outline": "truetune.pipeline.outline",
    "Published": "truetune.pipeline.publish",
    "Report": "truetune.data.rules",
    "Imported": "truetune.migrate.importer",
    **dict.fromkeys(
        (
            "check",
            "evaluate",
            "export",
            "find_lr",
            "fix",
            "import_config",
            "inspect",
            "load",
            "merge",
            "open_run",
            "plan",
            "prepare",
            "publish",
            "train",
        ),
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
    "Evaluation",
    "Export",
    "Forecast",
    "Imported",
    "Merged",
    "Outline",
    "PreparedDataset",
    "Published",
    "RangeTest",
    "Report",
    "Run",
    "TemplateError",
    "TrainedModel",
    "TruetuneError",
    "check",
    "evaluate",
    "export",
    "find_lr",
    "fix",
    "import_config",
    "inspect",
    "load",
    "merge",
    "open_run",
    "plan",
    "prepare",
    "publish",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'truetune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
