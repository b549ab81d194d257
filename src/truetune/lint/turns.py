"""Rules on the order and the filling of a conversation's turns."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from truetune.data.examples import Conversation, Message

TurnFinding = tuple[str, str, str]
"""The rule's name, the place in the row, and what was found there."""

TURN_RULES = ("answer-first", "turn-order", "open-question", "blank-turn")


def turn_findings(example: Conversation) -> Iterator[TurnFinding]:
    """What is odd about the turns; each is read and learned all the same."""
    turns = [(f"messages[{place}]", turn) for place, turn in enumerate(example.messages)]
    said = [(place, turn) for place, turn in turns if turn.role != "system"]
    if said[0][1].role == "assistant":
        yield "answer-first", said[0][0], "the assistant speaks first: its words are learned without a question"
    yield from _order(turns)
    if said[-1][1].role == "user":
        yield "open-question", said[-1][0], "the last turn is a question without an answer"
    for place, turn in turns:
        if not turn.content.strip() and not turn.extra:
            yield "blank-turn", f"{place}.content", f"the {turn.role}'s turn is blank"


def _order(turns: Sequence[tuple[str, Message]]) -> Iterator[TurnFinding]:
    for (_, before), (place, turn) in pairwise(turns):
        match before.role, turn.role:
            case ("user", "user") | ("assistant", "assistant"):
                yield "turn-order", place, f"two turns of the {turn.role} stand side by side"
            case "system", "system":
                yield "turn-order", place, "two system messages stand side by side"
            case _, "system":
                yield "turn-order", place, "a system message stands behind the first turn"
            case (("system" | "user"), "tool"):
                yield "turn-order", place, "a tool answers that no turn has called"
