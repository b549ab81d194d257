"""truetune: fine-tune language models on your own data, and be told the truth about it.

    import truetune

    run = truetune.train(model="demo", data=[{"instruction": "Say hi", "output": "hi"}, …], num_train_epochs=1)
    print(truetune.load(run).generate("Say hi").text)

Names are loaded when first used, so that importing truetune costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from truetune.api.data import check, fix, inspect, prepare
    from truetune.api.evaluation import evaluate, evaluate_tasks
    from truetune.api.runs import compare, list_runs, write_report
    from truetune.api.setup import import_config
    from truetune.api.trained import export, load, merge, publish, serve
    from truetune.api.training import find_lr, plan, train
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
    from truetune.pipeline.delivery.export import Export
    from truetune.pipeline.delivery.merge import Merged
    from truetune.pipeline.delivery.publish import Published
    from truetune.pipeline.delivery.serve import Serving
    from truetune.pipeline.evaluation.result import Evaluation
    from truetune.pipeline.evaluation.task_result import TaskEvaluation
    from truetune.pipeline.find_lr import RangeTest
    from truetune.pipeline.forecast import Forecast
    from truetune.pipeline.outline import Outline
    from truetune.pipeline.prepare import PreparedDataset
    from truetune.pipeline.review.compare import RunComparison
    from truetune.pipeline.review.report import RunReport
    from truetune.pipeline.run import Run, open_run
    from truetune.runs.ledger import RunEntry

_HOMES = {
    "Config": "truetune.config.schema",
    "Run": "truetune.pipeline.run",
    "TrainedModel": "truetune.inference.generate",
    "PreparedDataset": "truetune.pipeline.prepare",
    "Evaluation": "truetune.pipeline.evaluation.result",
    "Export": "truetune.pipeline.delivery.export",
    "RangeTest": "truetune.pipeline.find_lr",
    "Forecast": "truetune.pipeline.forecast",
    "Merged": "truetune.pipeline.delivery.merge",
    "Outline": "truetune.pipeline.outline",
    "Published": "truetune.pipeline.delivery.publish",
    "Serving": "truetune.pipeline.delivery.serve",
    "TaskEvaluation": "truetune.pipeline.evaluation.task_result",
    "RunComparison": "truetune.pipeline.review.compare",
    "RunEntry": "truetune.runs.ledger",
    "Report": "truetune.data.rules",
    "RunReport": "truetune.pipeline.review.report",
    "Imported": "truetune.migrate.importer",
    "import_config": "truetune.api.setup",
    "open_run": "truetune.pipeline.run",
    **dict.fromkeys(("check", "fix", "inspect", "prepare"), "truetune.api.data"),
    **dict.fromkeys(("evaluate", "evaluate_tasks"), "truetune.api.evaluation"),
    **dict.fromkeys(("compare", "list_runs", "write_report"), "truetune.api.runs"),
    **dict.fromkeys(("export", "load", "merge", "publish", "serve"), "truetune.api.trained"),
    **dict.fromkeys(("find_lr", "plan", "train"), "truetune.api.training"),
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
    "RunComparison",
    "RunEntry",
    "RunReport",
    "Serving",
    "TaskEvaluation",
    "TemplateError",
    "TrainedModel",
    "TruetuneError",
    "check",
    "compare",
    "evaluate",
    "evaluate_tasks",
    "export",
    "find_lr",
    "fix",
    "import_config",
    "inspect",
    "list_runs",
    "load",
    "merge",
    "open_run",
    "plan",
    "prepare",
    "publish",
    "serve",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("truetune")
    if name not in _HOMES:
        raise AttributeError(f"module 'truetune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
