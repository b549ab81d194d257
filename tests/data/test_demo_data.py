"""The demo's rows: seeded, learnable by copying, and nothing of the held-out ones occurs in training."""

import json
import re

import pytest

from truetune.data.demo import DAYS, INTENTS, LISTS, ROOMS, UNITS, demo_rows

CLOSED = (LISTS, UNITS, DAYS, ROOMS)


def test_there_are_three_hundred_rows_to_train_and_forty_held_out_all_different() -> None:
    rows = demo_rows()
    assert (len(rows.train), len(rows.held_out)) == (300, 40)
    assert len({row["instruction"] for row in (*rows.train, *rows.held_out)}) == 340


def test_a_seed_gives_the_same_rows_again_and_another_seed_others() -> None:
    assert demo_rows(seed=1) == demo_rows(seed=1)
    assert demo_rows(seed=1) != demo_rows(seed=2)


@pytest.mark.parametrize("seed", [1, 42])
def test_every_answer_is_one_line_of_json_whose_values_stand_in_the_request(seed: int) -> None:
    rows = demo_rows(seed=seed)
    for row in (*rows.train, *rows.held_out):
        command = json.loads(row["output"])
        assert "\n" not in row["output"]
        assert next(iter(command)) == "action"
        assert all(value in row["instruction"] for name, value in command.items() if name != "action")


def test_frames_and_open_values_of_held_out_rows_never_occur_in_training() -> None:
    for intent in INTENTS:
        assert not set(intent.frames) & set(intent.held_out_frames)
        for values in intent.slots.values():
            if values not in CLOSED:
                assert not {value.lower() for value in values.train} & {value.lower() for value in values.held_out}
    text = " ".join(row["instruction"] for row in demo_rows().train).lower()
    for row in demo_rows().held_out:
        command = json.loads(row["output"])
        intent = next(intent for intent in INTENTS if intent.action == command["action"])
        for name, values in intent.slots.items():
            if values not in CLOSED:
                assert not re.search(rf"\b{re.escape(command[name].lower())}\b", text), command[name]


def test_every_action_is_asked_for_about_equally_often() -> None:
    actions = [json.loads(row["output"])["action"] for row in demo_rows().train]
    counts = [actions.count(intent.action) for intent in INTENTS]
    assert min(counts) > 0.8 * max(counts)
