"""How good answers are, beside the ones that were expected: plain functions over texts.

A metric makes a few numbers of each row, whose sums over rows determine the figure. So rows can be drawn again
(`bootstrap`), and a row that a metric says nothing of adds nothing.
"""

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from truetune.errors import BackendError, ConfigError
from truetune.inference.tool_calls import Call, calls_in, calls_match

Statistics: TypeAlias = NDArray[np.float64]
"""(rows, k): what each row adds to the sums that a figure is made of."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a row's answer should be: `calls` where it calls tools, which `tools` declare (OpenAI's form)."""

    text: str
    calls: tuple[Call, ...] = ()
    tools: tuple[Any, ...] = ()


RowScore = Callable[[str, Expected], float | None]
"""From 0 to 1; None where the metric does not apply to what is expected."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure over rows: `statistics` of all rows, and `figure` of their sum. `meaning` is a line for people."""

    name: str
    meaning: str
    statistics: Callable[[Sequence[str], Sequence[Expected]], Statistics]
    figure: Callable[[Statistics], float]

    def row_figures(self, statistics: Statistics) -> NDArray[np.float64]:
        """The figure of each row by itself, NaN where the metric does not apply."""
        return np.array([self.figure(row) for row in statistics], dtype=np.float64)

    def row_scores(self, statistics: Statistics) -> list[float | None]:
        """The same for JSON, which has no NaN: None where the metric does not apply."""
        return [float(figure) if np.isfinite(figure) else None for figure in self.row_figures(statistics)]


def mean(sums: Statistics) -> float:
    """Of a sum of values and their number; NaN of none."""
    return float(sums[0] / sums[1]) if sums[1] else float("nan")


def without_thinking(text: str) -> str:
    """What an answer says, without the thinking in front of it."""
    return text.rpartition("</think>")[2].lstrip() if "</think>" in text else text


# --- rows -------------------------------------------------------------------------------------------------


def exact_match(answer: str, expected: Expected) -> float | None:
    """The same text, blanks around it aside. None where tools are to be called: how a call is spelled is markup."""
    return None if expected.calls else float(answer.strip() == expected.text.strip())


def normalized_match(answer: str, expected: Expected) -> float | None:
    """The same but for case, punctuation, blanks and English articles: SQuAD's exact match (arXiv 1606.05250).

    None where tools are to be called.
    """
    return None if expected.calls else float(normalized(answer) == normalized(expected.text))


def normalized(text: str) -> str:
    """SQuAD's normal form, with the punctuation of all scripts.

    >>> normalized("The  Eiffel-Tower!")
    'eiffeltower'
    """
    kept = "".join(letter for letter in text.lower() if not _is_punctuation(letter))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _is_punctuation(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


_NUMBER = re.compile(r"(?:(?<!\d)-)?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")


def last_number(text: str) -> Decimal | None:
    """The number that an answer ends at: behind the last ####, as in gsm8k (arXiv 2110.14168), else the last one."""
    behind = text.rpartition("####")[2]
    found = _NUMBER.findall(behind)
    if not found:
        return None
    try:
        return Decimal((found[0] if "####" in text else found[-1]).replace(",", ""))
    except InvalidOperation:
        return None


def number_match(answer: str, expected: Expected) -> float | None:
    """The same last number, however it is written (1,200 is 1200.0). None where no number is expected."""
    wanted = last_number(expected.text)
    return None if wanted is None else float(last_number(answer) == wanted)


def json_valid(answer: str, _: Expected) -> float:
    """The whole answer is a JSON document: no words around it, no fence."""
    return float(_parsed(answer) is not _NOTHING)


def json_f1(answer: str, expected: Expected) -> float | None:
    """F1 of the answer's fields (path and value) against the expected ones. None where no JSON is expected."""
    wanted, found = _parsed(expected.text), _parsed(answer)
    if wanted is _NOTHING:
        return None
    if found is _NOTHING:
        return 0.0
    fields, hits = Counter(_leaves(wanted)), Counter(_leaves(found))
    shared = (fields & hits).total()
    return 2 * shared / (fields.total() + hits.total())


_NOTHING = object()


def _parsed(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return _NOTHING


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Each field's path with its value, as JSON: true is not 1, but 1.0 is. An empty object is a field itself."""
    if isinstance(value, Mapping) and value:
        for name, each in value.items():
            yield from _leaves(each, f"{path}/{name}")
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            yield from _leaves(each, f"{path}/{index}")
    else:
        is_whole = isinstance(value, float) and value.is_integer()
        yield path, json.dumps(int(value) if is_whole else value, sort_keys=True)


def regex_match(answer: str, expected: Expected, *, pattern: re.Pattern[str]) -> float | None:
    """The pattern is in the answer; with a group, what the group finds is what it finds in the expected answer."""
    found = pattern.search(answer)
    if not pattern.groups:
        return float(found is not None)
    wanted = pattern.search(expected.text)
    return None if wanted is None else float(found is not None and found[1] == wanted[1])


def tool_calls(answer: str, expected: Expected) -> float | None:
    """The expected calls, in any order: names, required arguments, values by type.

    Where tools are offered and none fits, right is to call none (BFCL's irrelevance). None where there are no tools.
    """
    if not expected.calls and not expected.tools:
        return None
    return float(calls_match(calls_in(answer), expected.calls, tools=expected.tools))


# --- metrics of libraries ---------------------------------------------------------------------------------


def _rouge_l(answers: Sequence[str], expected: Sequence[Expected]) -> Statistics:
    """F-measure of the longest common subsequence of words, by rouge-score (no stemming, all scripts)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())

    def score(answer: str, each: Expected) -> float | None:
        return None if each.calls else float(scorer.score(each.text, answer)["rougeL"].fmeasure)

    return _by_row(score, answers, expected)


class _Words:
    """rouge-score's own tokenizer (0.1.2) keeps a to z and digits, and nothing of other scripts."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


def _bleu_statistics(answers: Sequence[str], expected: Sequence[Expected]) -> Statistics:
    """Of each row the n-grams found and made, and both lengths: (rows, 10)."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU()

    def statistics(answer: str, each: Expected) -> list[float]:
        score = bleu.corpus_score([answer], [[each.text]])
        return [*score.counts, *score.totals, score.sys_len, score.ref_len]

    found = zip(answers, expected, strict=True)
    return np.array([[0] * 10 if each.calls else statistics(answer, each) for answer, each in found], dtype=float)


def _bleu(sums: Statistics) -> float:
    """Corpus BLEU from 0 to 100, as sacrebleu computes it (13a, exponential smoothing); NaN of no text."""
    from sacrebleu.metrics import BLEU

    if not sums[-1]:
        return float("nan")
    numbers = [int(number) for number in sums]
    score = BLEU.compute_bleu(numbers[:4], numbers[4:8], numbers[8], numbers[9], smooth_method="exp")
    return float(score.score)


# --- the choice -------------------------------------------------------------------------------------------


def _by_row(score: RowScore, answers: Sequence[str], expected: Sequence[Expected]) -> Statistics:
    found = (score(answer, each) for answer, each in zip(answers, expected, strict=True))
    return np.array([[0.0, 0.0] if value is None else [value, 1.0] for value in found]).reshape(-1, 2)


def _row_metric(name: str, meaning: str, score: RowScore) -> Metric:
    return Metric(name, meaning, partial(_by_row, score), mean)


_SINGLE: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _row_metric("exact_match", "the same text", exact_match),
        _row_metric("normalized_match", "the same but for case, punctuation and blanks", normalized_match),
        _row_metric("number_match", "the same last number", number_match),
        _row_metric("json", "the answer is JSON", json_valid),
        _row_metric("json_f1", "F1 of the JSON's fields", json_f1),
        _row_metric("tool_calls", "the expected calls", tool_calls),
        Metric("rouge_l", "ROUGE-L of the words, F-measure", _rouge_l, mean),
        Metric("bleu", "corpus BLEU, 0 to 100", _bleu_statistics, _bleu),
    )
}
NAMES = ("exact_match", "normalized_match", "number_match", "json", "regex", "rouge_l", "bleu", "tool_calls")
"""What --metrics takes; json brings json_f1 with it."""
MEASURED = (*_SINGLE, "regex")
_PACKAGES = {"rouge_l": "rouge_score", "bleu": "sacrebleu"}


def named_metrics(names: Sequence[str], *, pattern: str | None = None) -> list[Metric]:
    """The metrics of these names, once each. ConfigError for a wrong name, BackendError for a missing extra."""
    return [_metric(name, pattern) for name in dict.fromkeys(_completed(names))]


def _completed(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield from (name, "json_f1") if name == "json" else (name,)


def _metric(name: str, pattern: str | None) -> Metric:
    if name == "regex":
        return _row_metric(name, f"the pattern {pattern}", partial(regex_match, pattern=_compiled(pattern)))
    if name not in _SINGLE:
        raise ConfigError(f"--metrics: there is no metric {name}", hint=f"metrics: auto, {', '.join(NAMES)}")
    if name in _PACKAGES and not _is_there(name):
        raise BackendError(
            f"the metric {name} needs {_PACKAGES[name].replace('_', '-')}", hint="run: pip install 'truetune[eval]'"
        )
    return _SINGLE[name]


def _compiled(pattern: str | None) -> re.Pattern[str]:
    if pattern is None:
        raise ConfigError("the metric regex needs a pattern", hint="add --regex PATTERN")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--regex {pattern}: {error}", hint="a pattern as Python's re takes it") from error


def _is_there(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(_PACKAGES[name]) is not None


@dataclass(frozen=True, slots=True)
class Choice:
    """Names of metrics, and why these."""

    names: tuple[str, ...]
    reason: str


_SHORT = 5
"""Words: so long answers are right or wrong as a whole."""


def choose_metrics(expected: Sequence[Expected]) -> Choice:
    """The metrics that fit what is expected."""
    texts = [each.text.strip() for each in expected if not each.calls]
    if expected and not texts:
        return Choice(("tool_calls",), "every expected answer calls tools")
    if len(texts) < len(expected):
        others = choose_metrics([each for each in expected if not each.calls])
        calling = f"{len(expected) - len(texts)} of {len(expected)} expected answers call tools"
        return Choice(("tool_calls", *others.names), f"{calling}; of the others: {others.reason}")
    if texts and all(isinstance(_parsed(text), dict | list) for text in texts):
        return Choice(("json", "exact_match"), "every expected answer is JSON")
    if texts and all("####" in text or _NUMBER.fullmatch(text.lstrip("$€£")) for text in texts):
        return Choice(("number_match", "exact_match"), "every expected answer is, or ends in, a number")
    words = float(np.median([len(text.split()) for text in texts])) if texts else 0.0
    if words <= _SHORT:
        return Choice(("exact_match", "normalized_match"), f"expected answers are short (median {words:.0f} words)")
    long = f"expected answers are texts (median {words:.0f} words)"
    if _is_there("rouge_l"):
        return Choice(("rouge_l", "normalized_match"), long)
    return Choice(("normalized_match",), f"{long}; ROUGE-L would tell more: pip install 'truetune[eval]'")
