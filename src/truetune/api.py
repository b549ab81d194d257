"""The Python side: the commands as functions, through the same schema as files and flags."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from truetune.config.load import load_config
from truetune.config.schema import NO_MODEL, Config
from truetune.data.rules import Report
from truetune.errors import ConfigError
from truetune.inference.generate import TrainedModel, load_trained
from truetune.inference.hub import HubTarget
from truetune.inference.servers import ServerName
from truetune.listener import Listener, LogListener
from truetune.migrate.importer import Imported, import_file
from truetune.pipeline.check import check_rows
from truetune.pipeline.check import prepare as prepare_data
from truetune.pipeline.delivery.export import Export, ExportSettings, Target, export_run
from truetune.pipeline.delivery.merge import Dtype, Merged, merge_run
from truetune.pipeline.delivery.publish import Publication, Published
from truetune.pipeline.delivery.publish import publish as publish_model
from truetune.pipeline.delivery.serve import ServeSettings, Serving, serve_run
from truetune.pipeline.evaluation.evaluate import EvaluationSettings, evaluate_run
from truetune.pipeline.evaluation.result import Evaluation, Thresholds
from truetune.pipeline.evaluation.task_result import TaskEvaluation
from truetune.pipeline.evaluation.tasks import TaskSettings, evaluate_on_tasks
from truetune.pipeline.find_lr import RangeTest, find_learning_rate
from truetune.pipeline.fix import Fixed, fix_rows
from truetune.pipeline.forecast import Forecast, forecast
from truetune.pipeline.inspect import Inspection, inspect_rows
from truetune.pipeline.outline import Outline
from truetune.pipeline.prepare import PreparedDataset
from truetune.pipeline.review.compare import RunComparison, compare_runs
from truetune.pipeline.review.report import RunReport
from truetune.pipeline.review.report import write_report as write_run_report
from truetune.pipeline.run import Run, open_run
from truetune.pipeline.stages import Formatting
from truetune.pipeline.train import train_run
from truetune.runs.ledger import RunEntry, find_runs

Data = str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]]

__all__ = [
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


def train(
    config: Config | str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    data: Data | None = None,
    output_dir: str | Path | None = None,
    formatting: Formatting | None = None,
    callbacks: Sequence[Any] = (),
    resume: Literal["never", "auto", "newest"] | Path = "never",
    resume_from_checkpoint: bool | str | Path | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    **settings: Any,
) -> Run:
    """Trains as `config` (a Config, a YAML file or a mapping) and the keywords say; keywords win.

    `data` is rows (mappings, or a datasets.Dataset) or a file's path; `formatting` turns one row into a text, a
    mapping with prompt and completion (or messages), or a list of messages; `callbacks` are transformers'
    TrainerCallbacks; `settings` are the config's leaf names: learning_rate=1e-4, max_steps=100. `resume` goes on from
    the newest complete checkpoint, or is an error; "auto" starts where there is none; a path is a checkpoint's.
    `resume_from_checkpoint` says the same in transformers' words.

    Raises ConfigError, DataError, BackendError or CheckpointError, all of them TruetuneError.
    """
    listener = listener or LogListener()
    resolved, rows = _config(config, model, data, output_dir, settings, listener)
    return train_run(
        resolved,
        rows=rows,
        formatting=formatting,
        callbacks=callbacks,
        resume=_resume(resume_from_checkpoint) or resume,
        overwrite=overwrite,
        listener=listener,
    )


def _resume(resume_from_checkpoint: bool | str | Path | None) -> Literal["newest"] | Path | None:
    if isinstance(resume_from_checkpoint, str | Path):
        return Path(resume_from_checkpoint)
    return "newest" if resume_from_checkpoint else None


def plan(
    config: Config | str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    data: Data | None = None,
    formatting: Formatting | None = None,
    device: str | None = None,
    parallel: Literal["ddp", "fsdp"] | None = None,
    probe: bool = False,
    price_per_hour: float | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> Forecast | Outline:
    """What the run that these arguments would train does and takes: steps, memory in bytes, seconds, settings, why.

    For this machine, or for another `device` ("RTX 4090", "h100:8", used in `parallel`); a `probe` trains some steps
    here and plans by what they took. `price_per_hour`, of the whole machine, tells the cost. Without `data` it is an
    Outline: what rows of the longest length take.
    """
    listener = listener or LogListener()
    resolved, rows = _config(config, model, data, None, settings, listener)
    return forecast(
        resolved,
        rows=rows,
        formatting=formatting,
        device=device,
        parallel=parallel,
        probe=probe,
        price_per_hour=price_per_hour,
        listener=listener,
    )


def find_lr(
    config: Config | str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    data: Data | None = None,
    formatting: Formatting | None = None,
    steps: int | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> RangeTest:
    """A range test of the learning rate on the run that these arguments would train; see `train` for them.

    Trains `steps` steps (by default 40 to 80), each at a higher rate, until the loss is lost; keeps no weights.
    """
    listener = listener or LogListener()
    resolved, rows = _config(config, model, data, None, settings, listener)
    return find_learning_rate(resolved, rows=rows, formatting=formatting, steps=steps, listener=listener)


def inspect(
    config: Config | str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    data: Data | None = None,
    formatting: Formatting | None = None,
    rows: int = 3,
    **settings: Any,
) -> Inspection:
    """What the model will read and learn of the first `rows` usable rows. Loads no weights."""
    resolved, source = _config(config, model, data, None, settings, LogListener())
    return inspect_rows(resolved, source=source, formatting=formatting, limit=rows)


def check(
    data: Data,
    *,
    model: str = NO_MODEL,
    formatting: Formatting | None = None,
    score: int | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> Report:
    """Every finding in the rows of `data`, none of them raised: with a model as it takes them, else by themselves.

    `score` is how many rows the model's own loss is measured on, which loads its weights.
    """
    resolved, rows = _config(None, model, data, None, settings, listener or LogListener())
    return check_rows(resolved, source=rows, formatting=formatting, score=score, listener=listener).report


def fix(
    data: Data,
    out: str | Path,
    *,
    values: Mapping[str, str] | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    **settings: Any,
) -> Fixed:
    """Writes a cleaned copy of `data` to `out` (.jsonl, .json, .csv, .parquet), and a list of every change beside it.

    Mends broken encodings, blanks around answers, spelled roles and, with `values` for their names, placeholders;
    leaves out repeated rows and those that cannot be used. `select` and `ignore` choose the rules.
    """
    listener = listener or LogListener()
    resolved, rows = _config(None, NO_MODEL, data, None, settings, listener)
    return fix_rows(resolved, out, values=values, overwrite=overwrite, source=rows, listener=listener)


def prepare(
    config: Config | str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    data: Data | None = None,
    formatting: Formatting | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> PreparedDataset:
    """The rows as training will read them: tokens, labels, split and report, memory-mapped. Loads no weights.

    Rows of files are kept in the cache, where the next run finds them. Raises DataError as training does.
    """
    resolved, rows = _config(config, model, data, None, settings, listener or LogListener())
    return prepare_data(resolved, source=rows, formatting=formatting, listener=listener)


def import_config(path: str | Path, *, tool: str | None = None) -> Imported:
    """Another tool's config file, or a training script (which is read, not run), in truetune's words.

    `tool` is axolotl, llamafactory, trl, unsloth, litgpt or script, where the file's keys do not tell. The result's
    `translation.settings` is a config: `truetune.train(dict(imported.translation.settings))`. Raises ConfigError.
    """
    return import_file(path, tool=tool)


def load(
    run: Run | str | Path,
    *,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> TrainedModel:
    """The trained model of a run (or of its directory, or of its adapter's folder), with training's prompts.

    `base_model` names the base where the recorded one is no longer there.
    """
    return load_trained(run.directory if isinstance(run, Run) else run, base_model=base_model, device=device)


def evaluate(
    run: Run | str | Path,
    *,
    data: Data | None = None,
    formatting: Formatting | None = None,
    metrics: str | Sequence[str] = "auto",
    regex: str | None = None,
    limit: int = 100,
    max_new_tokens: int = 256,
    compare_base: bool = True,
    generate: bool = True,
    forgetting: bool = True,
    reference: str | Path | None = None,
    fail_under: Mapping[str, float] | None = None,
    fail_over: Mapping[str, float] | None = None,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    listener: Listener | None = None,
) -> Evaluation:
    """Loss, perplexity and answers of a run's model beside its base's, on `data` or on the run's validation rows.

    `run` is also a folder of weights, or "RUN@STEP". `metrics` are of the last answers of up to `limit` rows, by
    default those that fit the rows; `forgetting` asks general instructions as well; `reference` is a file of another
    model's answers. A figure outside `fail_under` and `fail_over` is told in the result's `missed`, and not raised.
    The result is stored in the run's directory too. Raises ConfigError, DataError, BackendError or CheckpointError.
    """
    path = _path(data)
    if isinstance(path, list):
        raise ConfigError("data: one path is expected, or rows")
    settings = EvaluationSettings(
        metrics=(metrics,) if isinstance(metrics, str) else tuple(metrics),
        regex=regex,
        limit=limit,
        max_new_tokens=max_new_tokens,
        compares_base=compare_base,
        generates=generate,
        checks_forgetting=forgetting,
        reference=None if reference is None else Path(reference),
        thresholds=Thresholds(fail_under or {}, fail_over or {}),
    )
    return evaluate_run(
        run.directory if isinstance(run, Run) else run,
        data=path,
        rows=None if path else data,  # type: ignore[arg-type]
        formatting=formatting,
        settings=settings,
        base_model=base_model,
        device=device,
        listener=listener,
    )


def evaluate_tasks(
    run: Run | str | Path,
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include: str | Path | None = None,
    batch_size: int = 1,
    compare_base: bool = True,
    fail_under: Mapping[str, float] | None = None,
    fail_over: Mapping[str, float] | None = None,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    listener: Listener | None = None,
) -> TaskEvaluation:
    """Figures of lm-evaluation-harness's tasks for a run's model beside its base's, with proof of what was asked.

    `limit` is of each task's documents, `num_fewshot` the examples shown, `include` a folder of tasks of one's own.
    A figure outside `fail_under` and `fail_over` ("arc_easy.acc") is told in the result's `missed`, and not raised.
    The result is stored in the run's directory too. Raises ConfigError, DataError, BackendError or CheckpointError.
    """
    settings = TaskSettings(
        tasks=(tasks,) if isinstance(tasks, str) else tuple(tasks),
        limit=limit,
        num_fewshot=num_fewshot,
        include=None if include is None else Path(include),
        batch_size=batch_size,
        compares_base=compare_base,
        thresholds=Thresholds(fail_under or {}, fail_over or {}),
    )
    directory = run.directory if isinstance(run, Run) else run
    return evaluate_on_tasks(directory, settings, base_model=base_model, device=device, listener=listener)


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
    return compare_runs([run.directory if isinstance(run, Run) else run for run in runs])


def merge(
    run: Run | str | Path,
    out: str | Path,
    *,
    base_model: str | None = None,
    dtype: Dtype = "auto",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    overwrite: bool = False,
    listener: Listener | None = None,
) -> Merged:
    """Writes a run's adapter and its base as one model to the folder `out`, proved to answer as they do.

    `run` is also an adapter's folder, PEFT's too, or "RUN@STEP". `base_model` names a base that is not quantised,
    where the recorded one is, or where that is no longer there. `dtype` "auto" stores weights as the base does.
    Raises CheckpointError, and leaves nothing at `out`, if the merged model is not the trained one.
    """
    return merge_run(
        run.directory if isinstance(run, Run) else run,
        out,
        base_model=base_model,
        dtype=dtype,
        device=device,
        overwrite=overwrite,
        listener=listener,
    )


def publish(
    run: Run | str | Path,
    repository: str,
    *,
    public: bool = False,
    revision: str = "main",
    merged: bool = False,
    base_name: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    listener: Listener | None = None,
) -> Published:
    """Uploads a run's adapter or model (or a folder of weights or GGUF files) to the hub with a card; reads it back.

    `repository` is USER/NAME, made if it is missing, private unless `public`; `revision` a branch. `merged` sends
    base and adapter as one checked model, with `base_model` where the recorded base is quantised or gone; `base_name`
    is the base's name on the hub, where it was a folder. The token is HF_TOKEN, or that of `hf auth login`.

    Raises ConfigError, CheckpointError or BackendError.
    """
    return publish_model(
        run.directory if isinstance(run, Run) else run,
        HubTarget(repository, is_public=public, revision=revision),
        options=Publication(
            merged=merged, base_name=base_name, license=license, base_model=base_model, device=device
        ),
        listener=listener,
    )


def write_report(
    run: Run | str | Path, output: str | Path | None = None, *, listener: Listener | None = None
) -> RunReport:
    """Writes a run as one HTML page to look at, to `output` or into its directory. No model is loaded.

    The run may be going on. Raises CheckpointError where there is none, ConfigError or DataError for the output.
    """
    return write_run_report(run.directory if isinstance(run, Run) else run, output, listener=listener)


def export(
    run: Run | str | Path,
    out: str | Path,
    *,
    to: Target = "gguf",
    quantize: str = "auto",
    check: Literal["try", "require", "skip"] = "try",
    base_model: str | None = None,
    llama_cpp: str | Path | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    overwrite: bool = False,
    keep_adapter: bool = False,
    with_base: bool = False,
    listener: Listener | None = None,
) -> Export:
    """Writes a run's model to `out` as other programs load it, and asks it its training's prompts there.

    `to` is gguf (one file), ollama (a folder with the file and a Modelfile), vllm (a folder that it serves: merged,
    or with `keep_adapter` the adapter on its base), adapter (PEFT's folder) or gguf-adapter (a LoRA that llama.cpp
    puts over its base, whose own GGUF is written too `with_base`). `quantize` is llama.cpp's name, auto for how the
    model is stored; `check` "require" makes it an error where llama.cpp is not installed; `llama_cpp` is the folder
    of its source, whose converter then writes the file. Raises CheckpointError, and leaves nothing at `out`, if what
    was written is not the trained model.
    """
    settings = ExportSettings(
        to=to,
        quantize=quantize,
        check=check,
        base_model=base_model,
        llama_cpp=None if llama_cpp is None else str(llama_cpp),
        device=device,
        overwrite=overwrite,
        keeps_adapter=keep_adapter,
        with_base=with_base,
    )
    return export_run(run.directory if isinstance(run, Run) else run, out, settings, listener=listener)


def serve(
    run: Run | str | Path,
    *,
    server: Literal["auto"] | ServerName = "auto",
    host: str = "127.0.0.1",
    port: int | None = None,
    api_key: str | None = None,
    quantize: str = "auto",
    context_length: int | None = None,
    check: bool = True,
    base_model: str | None = None,
    llama_cpp: str | Path | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    listener: Listener | None = None,
) -> Serving:
    """Starts a server of OpenAI's API with a run's model, which has answered as the trained model does.

    with truetune.serve("runs/desk", port=0) as served:
        client = openai.OpenAI(base_url=served.url, api_key="none")

    `run` is also "RUN@STEP", a folder of weights or a .gguf file. The server ends with the block, by `close`, or with
    this process. `quantize` and `llama_cpp` (llama-server, or its folder) are for llama.cpp. Raises ConfigError,
    BackendError for a server that is missing or dies, CheckpointError for one with other answers.
    """
    settings = ServeSettings(
        server=server,
        host=host,
        port=port,
        api_key=api_key,
        quantize=quantize,
        context_length=context_length,
        check=check,
        base_model=base_model,
        llama_cpp=None if llama_cpp is None else str(llama_cpp),
        device=device,
    )
    return serve_run(run.directory if isinstance(run, Run) else run, settings, listener=listener)


def _path(data: Data | None) -> str | list[str] | None:
    """The path or paths that `data` holds, if it does not hold rows."""
    match data:
        case str() | Path():
            return str(data)
        case [*places] if places and all(isinstance(place, str | Path) for place in places):
            return [str(place) for place in places]
        case _:
            return None


def _config(
    config: Config | str | Path | Mapping[str, Any] | None,
    model: str | None,
    data: Data | None,
    output_dir: str | Path | None,
    settings: Mapping[str, Any],
    listener: Listener,
) -> tuple[Config, Iterable[Mapping[str, Any]] | None]:
    """The one schema's config, and the rows where `data` holds rows."""
    path = _path(data)
    rows: Any = None if path else data
    named = {
        "model.name_or_path": model,
        "data.path": path,
        "output_dir": str(output_dir) if output_dir else None,
    }
    given = {**{name: value for name, value in named.items() if value is not None}, **settings}
    if isinstance(config, Config):
        config = config.model_dump(mode="json", exclude_unset=True)
    if config is None and model is None:
        raise ConfigError("no model: name one with model=, or pass a config")
    loaded = load_config(config, settings=given)
    for notice in loaded.notices:
        listener.say(notice)
    return loaded.config, rows
