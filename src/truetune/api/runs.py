"""The runs there are: list_runs, compare, write_report."""

from pathlib import Path

from truetune.api.inputs import directory_of
from truetune.listener import Listener
from truetune.pipeline.review.compare import RunComparison, compare_runs
from truetune.pipeline.review.report import RunReport
from truetune.pipeline.review.report import write_report as write_run_report
from truetune.pipeline.run import Run
from truetune.runs.ledger import RunEntry, find_runs


def list_runs(*folders: str | Path) -> list[RunEntry]:
    """The runs in these folders (by default `runs`) and beneath them, by name, as their directories tell them.

    A run whose process died is `dead`, one whose run.json cannot be read is `unreadable`, with the problem. Raises
    CheckpointError for a folder that is none.
    """
    return find_runs(folders or ([Path("runs")] if Path("runs").is_dir() else []))


def compare(*runs: Run | str | Path) -> RunComparison:
    """Two runs or more side by side: what differs in settings, data and versions, their figures, and what is noise.

    Reads what their directories hold. Raises ConfigError or CheckpointError.
    """
    return compare_runs([directory_of(run) for run in runs])


def write_report(
    run: Run | str | Path, output: str | Path | None = None, *, listener: Listener | None = None
) -> RunReport:
    """Writes a run as one HTML page to look at, to `output` or into its directory. No model is loaded.

    The run may be going on. Raises CheckpointError where there is none, ConfigError or DataError for the output.
    """
    return write_run_report(directory_of(run), output, listener=listener)
