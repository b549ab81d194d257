"""The tables of a model's card: data, settings, results and how it was made, as a run's records have them."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from truetune.config.schema import Config
from truetune.figures import byte_size, duration
from truetune.inference.card import Rows
from truetune.pipeline.trained_records import Records, data_paths, is_hub_data, last_name, of
from truetune.runs.checkpoints import checkpoint_step, logged_lines
from truetune.runs.evaluations import stored_evaluations


def data_rows(records: Records) -> Iterator[tuple[str, str | None]]:
    report, config = records.report, records.config
    if not report and not records.record:
        return
    stats = report.get("stats") or {}
    names = [path if is_hub_data(path) else last_name(path) for path in data_paths(config)]
    yield "rows from", ", ".join(names) or None
    if config and config.data.revision:
        yield "revision", config.data.revision
    yield "rows read", _number(report.get("rows_read"))
    yield "rows kept", _number(report.get("rows_kept"))
    yield "rows left out", _left_out(report)
    yield "rows trained on", _number(stats.get("train_rows"))
    yield "rows held out for validation", _number(stats.get("validation_rows"))
    yield "tokens", _number(stats.get("tokens"))
    yield "tokens learned", _number(stats.get("supervised_tokens"))
    yield "fingerprint", of(records.record, "data", "fingerprint")


def _left_out(report: Mapping[str, Any]) -> str | None:
    rejected: Mapping[str, int] = report.get("rejected") or {}
    total = report.get("rows_rejected")
    if total is None:
        return None
    return f"{total:,}" + (
        f" ({', '.join(f'{name}: {count:,}' for name, count in rejected.items())})" if rejected else ""
    )


def settings_rows(records: Records) -> Iterator[tuple[str, str | None]]:
    config = records.config
    if config is None:
        return
    adapter, training, data = config.adapter, config.training, config.data
    yield "method", _method(config)
    if adapter.method == "lora":
        yield "r, lora_alpha, lora_dropout", f"{adapter.r}, {adapter.lora_alpha:g}, {adapter.lora_dropout:g}"
        yield "target_modules", _joined(adapter.target_modules)
        if adapter.modules_to_save:
            yield "modules_to_save", _joined(adapter.modules_to_save)
    if adapter.init_from:
        yield "went on from", last_name(adapter.init_from)
    yield "learning_rate", f"{training.learning_rate:g}" if training.learning_rate != "auto" else None
    yield "lr_scheduler_type", training.lr_scheduler_type
    yield (
        "warm-up",
        f"{training.warmup_steps} steps" if training.warmup_steps else f"{training.warmup_ratio:g} of steps",
    )
    yield "epochs", f"{training.num_train_epochs:g}" if training.num_train_epochs != "auto" else None
    yield "steps", _pair(records.record.get("steps"), records.record.get("total_steps"))
    yield "sequences a step", _number(records.record.get("effective_batch_size"))
    yield (
        "optimizer",
        f"{training.optim}, weight_decay {training.weight_decay:g}, max_grad_norm {training.max_grad_norm:g}",
    )
    yield "max_length", _number(of(records.report, "stats", "max_length") or data.max_length)
    yield "packing", str(data.packing).lower()
    yield "template", _template_name(data.template)
    yield "train_on", data.train_on
    yield "precision", records.record.get("precision")
    yield "weights of the base in", of(records.record, "model", "dtype")
    yield "seed", str(training.seed)


def _method(config: Config) -> str:
    if config.adapter.method == "full":
        return "full fine-tuning"
    quantised = "4" if config.model.load_in_4bit else "8" if config.model.load_in_8bit else ""
    kinds = [name for name, has in (("rsLoRA", config.adapter.use_rslora), ("DoRA", config.adapter.use_dora)) if has]
    over = f", over a base in {quantised} bits" if quantised else ""
    how = f" ({', '.join(kinds)})" if kinds else ""
    return f"LoRA{how}{over}"


def _template_name(template: str) -> str:
    if template.endswith(".jinja"):
        return last_name(template)
    return "a format text" if "{instruction}" in template else template


def results_rows(records: Records) -> Iterator[tuple[str, str | None]]:
    record = records.record
    if checkpoint_step(records.trained) >= 0:
        yield from _results_of_checkpoint(records.trained)
    elif record:
        yield "status of the run", record.get("status")
        yield "training loss, at the end", _loss(record.get("final_loss"))
        yield "validation loss", _loss(record.get("eval_loss"))
        if record.get("best_eval_loss") is not None:
            yield "best validation loss", _loss(record["best_eval_loss"])


def _results_of_checkpoint(folder: Path) -> Iterator[tuple[str, str | None]]:
    lines = []
    with suppress(OSError, ValueError, KeyError):
        lines = logged_lines(folder)
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    yield "checkpoint of step", str(checkpoint_step(folder))
    yield "training loss, last logged", _loss(last.get("loss"))
    yield "validation loss, last measured", _loss(last.get("eval_loss"))


def evaluation_tables(records: Records) -> Iterator[tuple[str, Rows]]:
    """The figures of evaluations of these weights; what they say of rows stays here."""
    stored = stored_evaluations(records.run) if records.run else []
    # The last on the same rows is told.
    for found in (each.document for each in reversed(stored) if not each.is_of_tasks):
        weights = of(found, "record", "weights")
        if weights and Path(weights).absolute() == records.trained.absolute():
            data = str(found.get("data") or "rows that are not known")
            yield (data if is_hub_data(data) else last_name(data)), dict(_figures(found))


def _figures(found: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    base = found.get("base") or {}
    yield "rows", _number(found.get("rows"))
    yield "learned tokens", _number(found.get("tokens"))
    for name in ("eval_loss", "perplexity", "token_accuracy"):
        yield name, _beside(found.get(name), base.get(name))
    for name, value in (found.get("metrics") or {}).items():
        yield name, _beside(value, (base.get("metrics") or {}).get(name))
    forgetting = found.get("forgetting") or {}
    if forgetting:
        share, total = forgetting.get("passed"), forgetting.get("instructions")
        before = forgetting.get("base_passed")
        yield (
            "general instructions followed",
            f"{share} of {total}" + (f"; the base {before}" if before is not None else ""),
        )


def made_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    if not record:
        return
    yield "started, ended", ", ".join(filter(None, (record.get("started"), record.get("ended")))) or None
    yield "engine", record.get("backend")
    yield "device", _device(record)
    seconds, peak, rate = (record.get(name) for name in ("seconds", "peak_memory_bytes", "tokens_per_second"))
    yield "time of training", None if seconds is None else duration(seconds)
    yield "peak memory", None if peak is None else byte_size(peak)
    yield "tokens a second", None if rate is None else f"{rate:,.0f}"
    yield (
        "versions",
        ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items()) or None,
    )


def _device(record: Mapping[str, Any]) -> str | None:
    hardware = record.get("hardware") or {}
    if not hardware:
        return None
    on = [f"{hardware.get('cpus')} CPU cores ({hardware.get('machine')}, {hardware.get('system')})"]
    gpus = hardware.get("gpus")
    return ", ".join([str(record.get("device")), *on, *([str(gpus)] if gpus and gpus != "none" else [])])


def _number(value: Any) -> str | None:
    return None if value is None else f"{value:,}"


def _pair(first: Any, second: Any) -> str | None:
    return None if first is None or second is None else f"{first:,} of {second:,}"


def _loss(value: Any) -> str | None:
    return None if value is None else f"{value:.4f}"


def _beside(value: Any, base: Any) -> str | None:
    if not isinstance(value, int | float):
        return None
    return f"{value:.4g}" + (f" (base: {base:.4g})" if isinstance(base, int | float) else "")


def _joined(names: Any) -> str:
    return names if isinstance(names, str) else ", ".join(names)
