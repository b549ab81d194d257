"""What is wrong with data or a run, rows with their learned tokens, and pages of rules."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from truetune.console.output import show

if TYPE_CHECKING:
    from truetune.data.rules import Problem, Report
    from truetune.pipeline.fix import Fixed
    from truetune.pipeline.inspect import Inspection
    from truetune.pipeline.verify import Verification


def show_inspected(found: "Inspection") -> None:
    """Each row's text with what is learned of it, then the rows that were left out."""
    console = Console(highlight=False, soft_wrap=True)
    for row in found.rows:
        count = f"{len(row.tokens.input_ids)} tokens, {row.tokens.supervised} learned"
        console.print(f"[bold]{escape(f'{row.where}: {count}')}[/]")
        console.print(_marked(row.pieces, has_colours=console.is_terminal))
        console.print()
    for rule, number in found.report.rejected.items():
        show(f"{number} of {found.report.rows_read} rows left out: {rule}; first: {found.report.first(rule)}")


def _marked(pieces: Sequence[tuple[str, bool]], *, has_colours: bool) -> Text:
    """The learned pieces in green on a terminal, and between « » elsewhere."""
    text = Text()
    for piece, is_learned in pieces:
        match is_learned, has_colours:
            case True, True:
                text.append(piece, style="bold green")
            case True, False:
                text.append(f"«{piece}»")
            case _:
                text.append(piece, style="dim")
    return text


_MARKS = {"error": "[bold red]error[/]", "warning": "[yellow]warning[/]", "note": "[cyan]note[/]"}

_SHOWN = {"error": 10, "warning": 3, "note": 1}
"""Findings of one rule that are shown."""
_ALIKE = 2
"""Of them, those that say the same of other rows."""


def show_report(report: "Report") -> None:
    """The findings, the worst and the commonest first, with place, reason and remedy; of many the first few."""
    console = Console(highlight=False, soft_wrap=True)

    def rank(problem: "Problem") -> tuple[int, int, str]:
        return list(_MARKS).index(problem.severity), -report.rows_of(problem.rule), problem.rule

    for name, problems in groupby(sorted(report.problems, key=rank), key=lambda problem: problem.rule):
        found = list(problems)
        shown = _unlike(found)[: _SHOWN[found[0].severity]]
        for problem in shown:
            console.print(f"{_MARKS[problem.severity]} {escape(f'{problem.code} [{name}] {problem}')}")
        if len(found) > 1 and (more := report.rows_of(name) - len(shown)) > 0:
            console.print(f"      and {more:,} more")
        if found[0].hint:
            console.print(f"      hint: {escape(found[0].hint)}")
    _show_guidelines(console, report.stats.get("guidelines", ()))
    _show_scores(console, report.stats.get("score"))
    for form, count in report.stats["read_from"].items():
        console.print(f"read as {escape(form)}: {count:,} rows")
    for name in ("tokens", "supervised_tokens", "longest_row_tokens", "max_length"):
        if name in report.stats:
            console.print(f"{name}: {report.stats[name]:,}")
    if not report.rows_read:
        console.print("[bold red]error[/] the data holds no rows: give a file with one object a line")
    console.print(f"{report.rows_kept:,} of {report.rows_read:,} rows can be used")


def _unlike(problems: Sequence["Problem"]) -> Sequence["Problem"]:
    """Without those that say of a row what two before them do: where columns have other names, all rows are alike."""
    said = Counter[str]()
    kept = []
    for problem in problems:
        said[problem.message] += problem.field is None
        if said[problem.message] <= _ALIKE:
            kept.append(problem)
    return kept


def _show_guidelines(console: Console, guidelines: Sequence[Mapping[str, Any]]) -> None:
    for each in guidelines:
        mark = "" if each["is_within"] else "  [yellow]outside[/]"
        console.print(f"{each['name']}: {escape(each['measures'])} {each['value']:,.4g} ({each['range']}){mark}")


def _show_scores(console: Console, score: Mapping[str, Any] | None) -> None:
    if not score:
        return
    losses = f"mean loss {score['mean_loss']:.3f}, median {score['median_loss']:.3f} nats a learned token"
    console.print(f"scored: {score['rows_scored']:,} of {score['rows']:,} rows, {losses}")
    for end in ("most", "least"):
        rows = [f"{each['where']['line']} ({each['loss']:.2f})" for each in score[f"{end}_surprising"][:5]]
        console.print(f"{end} surprising: {score[f'{end}_surprising'][0]['where']['unit']} {', '.join(rows)}")


def show_pages(pages: Iterable[str]) -> None:
    """Markdown, laid out on a terminal and as it stands elsewhere."""
    from rich.markdown import Markdown

    console = Console(highlight=False)
    for page in pages:
        console.print(Markdown(page) if console.is_terminal else escape(page), soft_wrap=not console.is_terminal)


def show_verification(found: "Verification") -> None:
    """Each part of a run with what is wrong with it."""
    for part in found.parts:
        facts = ", ".join(
            f"{name} {value:.3g}" for name, value in part.facts.items() if isinstance(value, int | float)
        )
        show(f"{part.name}: {'; '.join(part.problems) or 'as it was written'}{facts and f' ({facts})'}")
    show(f"{found.path}: {'sound' if found.is_sound else 'not sound'}")


def show_fixed(fixed: "Fixed") -> None:
    """What was changed, left out and written, a line each."""
    from truetune.data.catalog import RULES

    for rule, count in fixed.changes.items():
        show(f"changed: {count:,} × {RULES[rule]}")
    for rule, count in fixed.left_out.items():
        show(f"left out: {count:,} × {RULES[rule]}")
    for name, count in fixed.placeholders_left.items():
        show(f"placeholder left: {count:,} × {{{{{name}}}}}")
    show(f"{fixed.rows_written:,} of {fixed.rows_read:,} rows written: {fixed.path}")
    show(f"every change: {fixed.changes_path}")
