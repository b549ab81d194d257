"""What a call of a training script is read by, and the answers that calls have in common."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truetune.migrate.formatting import template_of_function
from truetune.migrate.outcomes import Leave, Outcome, Rule, harmless, left
from truetune.migrate.walk import Call, Walk

TRAINERS = ("SFTTrainer", "UnslothTrainer", "Trainer")

MADE = harmless("it is what the script made before")
TOKENIZER = harmless("the tokenizer comes with the model")
ROW_WORK = harmless("rows are prepared in truetune's own way")
ONE_SEED = harmless("adapter, order and split have one seed here: training.seed")
LOG_IN = left("log in with: hf auth login")


@dataclass(frozen=True, slots=True)
class Kind:
    """A call that says how a model is trained: its rules by argument, and the names of what stands without one.

    `objects` are arguments whose value is a thing of the script's own, which needs no reading.
    """

    name: str
    rules: Mapping[str, Rule]
    order: Sequence[str] = ()
    objects: frozenset[str] = frozenset()
    shares_names: bool = False


def formatted_by(given: str, call: Call, walk: Walk) -> Rule:
    """What a function of the script's, by its name, makes of a row."""
    function = walk.functions.get(given) or walk.lambdas.get(given)

    def rule(*_: Any) -> Iterator[Outcome]:
        if function is None:
            yield Leave("the function is not in the script: see data.template, or pass formatting= in Python")
        else:
            yield from template_of_function(function, call.names)

    return rule
