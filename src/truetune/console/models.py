"""What there is here: models and what they take, the machine, its libraries and what is wrong with them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from truetune.console.output import show, show_columns, show_heading, show_pairs, show_section
from truetune.figures import byte_size, short_count

if TYPE_CHECKING:
    from truetune.pipeline.doctor.diagnosis import Diagnosis
    from truetune.pipeline.doctor.libraries import Library
    from truetune.pipeline.models.describe import ModelDescription
    from truetune.pipeline.models.needs import Need


def show_models(models: Sequence["ModelDescription"]) -> None:
    """A table on a terminal, a line with tabs for each model elsewhere; then what is wrong with which."""
    columns = ("model", "parameters", "on disk", "context", "template", "stored", "lora", "qlora", "full")
    rows = [_model_row(model) for model in models]
    show_columns(columns, rows)
    console = Console(highlight=False)
    for model in models:
        if model.problem:
            console.print(f"{escape(model.name)}: [yellow]{escape(model.problem)}[/]", soft_wrap=True)
    show(f"{len(models)} models. Memory: the peak {_HOW}; no: more than is free")


def _model_row(model: "ModelDescription") -> tuple[str, ...]:
    template = {True: "yes", False: "no", None: "-"}[model.template]
    parameters = "-" if model.parameters is None else short_count(model.parameters)
    context = f"{model.context_length:,}" if model.context_length else "-"
    size = byte_size(model.bytes) if model.bytes else "-"
    needs = ("-" if need is None else _need(need, no=" no") for need in model.needs.values())
    return (model.name, parameters, size, context, template, model.dtype or "-", *needs)


def _need(need: "Need", *, yes: str = "", no: str) -> str:
    return byte_size(need.peak_bytes) + {True: yes, False: no, None: ""}[need.fits]


_HOW = "at batch 1, rows of 2,048 tokens (or the context), rank 16"


def show_model(model: "ModelDescription") -> None:
    """One model's facts, what training it takes here, and what is unusual with what that means."""
    facts = ("parameters", "on disk", "context", "chat template", "stored as")
    show_pairs(
        {
            "model": model.name,
            **dict(zip(facts, _model_row(model)[1:6], strict=True)),
            **{name: _long_need(need) for name, need in model.needs.items()},
        }
    )
    if model.problem:
        show(f"problem: {model.problem}")
    show("unusual:" if model.unusual else "nothing unusual")
    for oddity in model.unusual:
        show(f"- {oddity.what}\n      {oddity.meaning}")


def _long_need(need: "Need | None") -> str:
    if need is None:
        return "not known, or not possible"
    how = ", with gradient checkpointing" if need.gradient_checkpointing else ""
    return f"{_need(need, yes=', fits', no=', does not fit')}{how}, {_HOW}"


def show_doctor(found: "Diagnosis") -> None:
    """Machine, libraries, extras, hub and environment under headings, then what is wrong and what to do."""
    show_section("Machine", found.machine)
    show_section("Libraries", {each.name: _judgement(each) for each in found.libraries})
    absent = {each.name: f"not installed; to {each.gives}: {each.install}" for each in found.extras}
    show_section("Extras", {each.name: each.installed or absent[each.name] for each in found.extras})
    show_section("Hub", found.hub.in_words())
    show_section("Environment", found.environment or {"nothing": "no variable that changes runs is set"})
    show_heading("Problems")
    console = Console(highlight=False, soft_wrap=True)
    for each in found.problems:
        mark = "[bold red]problem[/]" if each.severity == "problem" else "[cyan]note[/]"
        console.print(f"{mark}: {escape(each.what)}")
        console.print(f"      why: {escape(each.why)}")
        console.print(f"      do:  {escape(each.remedy)}")
    if found.is_well:
        show("no problems found" + (", notes only" if found.problems else ""))


def _judgement(library: "Library") -> str:
    tested = "" if library.verdict == "tested" else f" (tested: {library.tested or 'none'})"
    return f"{library.installed or 'none'}: {library.verdict}{tested}; allowed {library.allowed or 'any'}"
