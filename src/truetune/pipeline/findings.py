"""What only all rows together show, and what is refused for it."""

from collections.abc import Iterator

import numpy as np

from truetune.config.schema import DataConfig
from truetune.data.catalog import RULES
from truetune.data.examples import Location
from truetune.data.rules import Problem, Report
from truetune.data.split import Split, repeated
from truetune.data.store import Places, StoredRows
from truetune.data.templates import Template
from truetune.errors import DataError
from truetune.pipeline.stages import Account
from truetune.pipeline.token_findings import token_findings


def find_all(stored: StoredRows, split: Split, *, account: Account, template: Template) -> Iterator[Problem]:
    """The findings of prepared rows: of their forms, of equal ones, of the template."""
    keys, files, lines = (stored.column(name) for name in ("key", "file", "line"))
    if not len(keys):
        return

    def where(row: int) -> Location:
        return account.where(files[row], lines[row])

    yield from form_findings(account, where(0))
    again, first = repeated(keys)
    if first is not None:
        yield repeated_rows(again, where(first))
    is_leaked = np.isin(keys[split.held_out], keys[np.unique(split.train)])
    if (leaked := split.held_out[is_leaked]).size:
        message = f"validation rows are training rows too: {len(leaked)}"
        yield Problem.found("leaked-rows", message, where(int(leaked[0])), rows=len(leaked))
    if near := _near_training(split, split.held_out[~is_leaked], len(keys)):
        message = f"validation rows are nearly training rows: {len(near)}"
        yield Problem.found("near-leaked", message, where(near[0]), rows=len(near))
    if (forms := split.of_one_form).size:
        message = (
            f"rows differ in a few words from many others: {len(forms)}; too many for one side of the split, so only "
            "equal ones of them share one, and the validation loss flatters them"
        )
        yield Problem.found("one-form", message, where(int(forms[0])), rows=len(forms))
    yield from token_findings(stored, account=account, template=template, where=where)
    yield from _template_findings(account, template, where(0))


def _near_training(split: Split, held_out: Places, rows: int) -> list[int]:
    """Those of the validation rows that a training row, of so many rows in all, is nearly the same as."""
    nearest = split.pairs.nearest(np.isin(np.arange(rows), split.train)) if len(split.pairs) else {}
    return [row for row in held_out.tolist() if row in nearest]


def _template_findings(account: Account, template: Template, where: Location) -> Iterator[Problem]:
    formats = account.formats
    if formats["chat"] and not template.terminator:
        message = "no stop token: the template does not close the assistant's turn, so the model may not stop"
        yield Problem.found("no-stop-token", message, where)
    if template.prints_date and formats.keys() - {"text"}:
        message = "the template prints today's date into every row, so another day's prompts differ from these"
        yield Problem.found("dated-template", message, where)
    if formats["completion"] and template.chat and not template.completion_as_chat:
        pairs = f"{formats['completion']} rows of prompt + completion are joined as plain text"
        message = f"{pairs}; data.template=model sends them through the model's chat template instead"
        yield Problem.found("joined-as-text", message, where)


def form_findings(account: Account, where: Location) -> Iterator[Problem]:
    """What is told of the rows' forms; a field that some rows have more than others makes no other form."""
    spelled = [(form.partition(" from ")[0], frozenset(_fields(form))) for form in account.forms]
    if sum(not any(word == other and names < more for other, more in spelled) for word, names in spelled) > 1:
        forms = ", ".join(f"{form} ({count} rows)" for form, count in account.forms.most_common())
        yield Problem.found("mixed-formats", f"the rows have several formats: {forms}", where)


def _fields(form: str) -> list[str]:
    """The fields that a form is read from: "chat from messages (role/content)" names messages (role/content)."""
    return form.partition(" from ")[2].split(", ")


def repeated_rows(count: int, where: Location) -> Problem:
    """The finding that rows equal earlier ones."""
    message = f"rows equal an earlier one: {count}; they share its side of the split"
    return Problem.found("duplicate-rows", message, where, rows=count)


def refuse_if_strict(data: DataConfig, report: Report) -> None:
    """Strict data loses nothing: no row, no field, no part of an answer; and nothing in it is changed."""
    if not data.strict:
        return
    if report.rejected:
        first = report.problems[0]
        raise DataError(f"{report.rows_rejected} rows cannot be used, the first: {first}", hint=first.hint)
    if told := [problem for problem in report.problems if not RULES[problem.rule].is_harmless]:
        raise DataError(
            f"data.strict: {'; '.join(map(str, told))}", hint="mend the rows, or set data.strict to false"
        )


def nothing_usable(report: Report, *, is_validation: bool) -> DataError:
    """0 usable rows: the count and the first place of each reason."""
    kind = "0 usable validation rows" if is_validation else "0 usable rows"
    if not report.rows_read:
        return DataError(f"{kind}: the data holds no rows", hint="give a file with one object a line")
    reasons = "; ".join(f"{count} × {rule}, first {report.first(rule)}" for rule, count in report.rejected.items())
    limit = report.stats["max_length"]
    total = f"{report.rows_rejected} of {report.rows_read} rejected with max_length {limit}"
    return DataError(
        f"{kind}, so no trainable (supervised) token: {total}: {reasons}",
        hint=report.problems[0].hint if report.problems else None,
    )
