"""Near duplicates: every pair that is similar is found, and none that isn't."""

import os
import random
import subprocess
import sys
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from truetune.data import near
from truetune.data.near import SIMILAR, NearIndex, Pairs, shingles, words


def texts(count: int, *, seed: int = 0, vocabulary: int = 40) -> list[str]:
    """Texts of few words, many of them changed copies of others."""
    chance = random.Random(seed)
    names = [f"w{number}" for number in range(vocabulary)]
    made: list[list[str]] = []
    for _ in range(count):
        if made and chance.random() < 0.5:
            words = list(chance.choice(made))
            for _ in range(chance.randrange(3)):
                words[chance.randrange(len(words))] = chance.choice(names)
        else:
            words = [chance.choice(names) for _ in range(chance.randrange(1, 60))]
        made.append(words)
    return [" ".join(each) for each in made]


def found_pairs(rows: list[str], *, chunk: int = 150) -> Pairs:
    index = NearIndex()
    for start in range(0, len(rows), chunk):
        index.add(shingles([words(text) for text in rows[start : start + chunk]]))
    pairs = index.pairs()
    index.close()
    return pairs


@cache
def triples(text: str) -> frozenset[tuple[str, ...]]:
    spoken = words(text)
    return frozenset([tuple(spoken)] if len(spoken) < 3 else zip(spoken, spoken[1:], spoken[2:], strict=False))


def similarity(left: str, right: str) -> float:
    one, other = triples(left), triples(right)
    return len(one & other) / len(one | other)


def similar_by_hand(rows: list[str], least: float) -> list[tuple[int, int]]:
    return [
        (left, right)
        for left, right in combinations(range(len(rows)), 2)
        if similarity(rows[left], rows[right]) >= least - 1e-9
    ]


def linked_by_hand(rows: list[str]) -> list[int]:
    """The clusters by comparing all with all."""
    first = np.array(similar_by_hand(rows, SIMILAR)).reshape(-1, 2)
    return Pairs(first[:, 0], first[:, 1], np.ones(len(first))).clusters(len(rows)).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_the_clusters_are_those_of_comparing_every_row_with_every_other(seed: int) -> None:
    rows = texts(400, seed=seed)
    assert len(similar_by_hand(rows, SIMILAR)) > 50
    assert found_pairs(rows).clusters(len(rows)).tolist() == linked_by_hand(rows)


def test_each_pair_that_is_told_has_the_similarity_that_is_told() -> None:
    rows = texts(400, seed=9)
    pairs = found_pairs(rows)
    assert len(pairs) > 50
    for first, second, told in zip(pairs.first, pairs.second, pairs.similarity, strict=True):
        assert first < second
        assert told == pytest.approx(similarity(rows[first], rows[second]))
        assert told >= SIMILAR - 1e-9


def test_beyond_the_exact_size_minhash_finds_the_same_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "EXACT_ROWS", 0)
    rows = texts(400, seed=3)
    assert found_pairs(rows).clusters(len(rows)).tolist() == linked_by_hand(rows)


def test_rows_that_share_too_many_triples_go_to_minhash_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = texts(300, seed=5)
    exact = found_pairs(rows).clusters(len(rows)).tolist()
    monkeypatch.setattr(near, "_MOST_CANDIDATES", 10)
    assert found_pairs(rows).clusters(len(rows)).tolist() == exact


def test_pairs_are_compared_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = texts(300, seed=6)
    whole = found_pairs(rows)
    monkeypatch.setattr(near, "_BATCH", 100)
    parts = found_pairs(rows)
    assert (whole.first.tolist(), whole.similarity.tolist()) == (parts.first.tolist(), parts.similarity.tolist())


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("What is the capital of France?", "what is  the capital of france"),
        ("Grüße aus Köln, bitte!", "GRÜSSE aus Köln bitte"),
        ("今天天气怎么样？", "今天天气怎么样"),
    ],
)
def test_case_blanks_and_punctuation_make_no_difference(left: str, right: str) -> None:
    assert found_pairs([left, "another text that has nothing of it", right]).first.tolist() == [0]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("What is 5 > 3?", "What is 5 < 3?"),
        ("2 + 3", "2 - 3"),
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("🙂", "🎉"),
        ("!!!", "???"),
        ("今天天气怎么样", "明天天气怎么样"),
    ],
)
def test_texts_of_another_meaning_are_no_near_duplicates(left: str, right: str) -> None:
    assert not len(found_pairs([left, right]))


def test_no_rows_have_no_pairs() -> None:
    assert not len(found_pairs([]))
    assert found_pairs(["one row alone"]).clusters(1).tolist() == [0]


def test_another_process_finds_the_same_hashes() -> None:
    program = "from truetune.data.near import shingles; print(shingles([['a', 'b', 'c', 'd']]).hashes.tolist())"
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_a_row_that_is_all_but_an_earlier_one_is_compared_with_the_others_too() -> None:
    first = [f"w{number}" for number in range(902)]
    changed = [*first[:-1], "x"]
    shorter = changed[180:]
    rows = [" ".join(each) for each in (first, changed, shorter)]
    assert similarity(rows[0], rows[2]) < SIMILAR <= similarity(rows[1], rows[2])
    assert found_pairs(rows).clusters(3).tolist() == [0, 0, 0]


def test_the_hashes_of_a_text_do_not_hang_on_its_chunk() -> None:
    spoken = [words(text) for text in texts(60)]
    whole = shingles(spoken)
    small = [shingles(spoken[start : start + 7]) for start in range(0, 60, 7)]
    assert whole.hashes.tolist() == [value for part in small for value in part.hashes.tolist()]
    assert whole.counts.tolist() == [count for part in small for count in part.counts.tolist()]
