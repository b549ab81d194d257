"""The card of what is written here: the README.md that `--to hub` would send, and its facts beside it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from truetune.errors import CheckpointError
from truetune.files import write_json, write_text
from truetune.inference.card import (
    BaseFacts,
    CardFacts,
    Kind,
    facts_document,
    facts_of,
    is_untouched,
    model_card,
    sealed,
)
from truetune.inference.hub import CARD
from truetune.model.source import DEMO
from truetune.pipeline.delivery.card_facts import base_facts, card_facts, local_license
from truetune.pipeline.trained_records import Records, document, is_hub_name, read_records, recorded_base
from truetune.runs.directory import CARD_FACTS


def write_card(
    folder: Path,
    trained: Path,
    *,
    name: str,
    kind: Kind,
    base_model: str | None = None,
    results: Mapping[str, str | None] | None = None,
) -> None:
    """Puts README.md and its facts into a folder that was made of the weights in `trained`.

    `name` is the folder's; `base_model` the base as it was named for this, `results` what was found besides, if
    anything. Nothing of it names a place of this machine. A README.md that somebody wrote is kept.
    """
    records = read_records(folder, trained=trained)
    facts = card_facts(records, named_base(records, base_model), repository=name, kind=kind)
    found, reason = license_here(records, facts.base)
    found_here = {what: value for what, value in (results or {}).items() if value is not None}
    facts = replace(facts, license=found, license_reason=reason, results={**facts.results, **found_here})
    write_json(folder / CARD_FACTS, facts_document(facts))
    card = folder / CARD
    if not card.is_file() or is_untouched(card.read_text(encoding="utf-8", errors="replace")):
        write_text(card, sealed(model_card(facts)))


def named_base(records: Records, named: str | None) -> BaseFacts | None:
    """The base as a card names it: as it is named now, where that is a name on the hub, else as the run has it."""
    return base_facts(records, base_name=named if named and is_hub_name(named) else None)


def license_here(records: Records, base: BaseFacts | None) -> tuple[str | None, str | None]:
    """The license and where it is known from, as far as this machine tells: no hub is asked."""
    if found := local_license(recorded_base(records)[0]):
        return found, "the base model's, by its card"
    return ("apache-2.0", "the base model's") if base and base.name == DEMO else (None, None)


def read_card_facts(folder: Path) -> CardFacts | None:
    """What a card of ours was written from; None where there is none, or it is damaged."""
    with suppress(CheckpointError):
        return facts_of(document(folder / CARD_FACTS)) if (folder / CARD_FACTS).is_file() else None
    return None
