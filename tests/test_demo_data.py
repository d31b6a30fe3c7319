"""The bundled demo rows: counts, keys, lengths, and no near-duplicates (they were written one by one)."""

import json
import re
from collections import Counter
from functools import cache
from importlib.resources import files
from itertools import combinations, pairwise
from statistics import mean

import pytest

COUNTS = {"negatives": 96, "good": 40, "validation": 32, "test": 32, "retain": 32, "prompts": 3}
KEYS = {
    "negatives": {"id", "prompt", "completion", "label", "flag"},
    "good": {"id", "prompt", "completion", "label"},
    "validation": {"id", "prompt", "chosen", "rejected"},
    "test": {"id", "prompt", "chosen", "rejected"},
    "retain": {"id", "prompt", "completion"},
    "prompts": {"id", "prompt"},
}
ANSWER_KEYS = ("completion", "chosen", "rejected")
MAX_SIMILARITY = 0.35
MAX_SHARED_OPENINGS = 3


def load(name: str) -> list[dict]:
    text = (files("u2a") / "demo_data" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


ROWS = {name: load(name) for name in COUNTS}
PROMPTS = {row["id"]: row["prompt"] for rows in ROWS.values() for row in rows}
ANSWERS = {
    f"{row['id']}.{key}": row[key]
    for rows in ROWS.values()
    for row in rows
    for key in ANSWER_KEYS
    if key in row
}


@cache
def words(text: str) -> tuple[str, ...]:
    """Lower-cased words without punctuation; an apostrophe inside a word stays (don't is one word)."""
    return tuple(re.findall(r"\w+(?:['’]\w+)*", text.lower()))


@cache
def ngrams(text: str, n: int) -> frozenset[tuple[str, ...]]:
    """The set of runs of n words."""
    return frozenset(words(text)[i : i + n] for i in range(len(words(text)) - n + 1))


def similarity(first: str, second: str) -> float:
    """Jaccard similarity, 0..1, of the sets of word 3-grams; of 2-grams when a text has fewer than 5 words.

    A text of 3 or 4 words has only one or two 3-grams, so one changed word would hide its twin.
    """
    n = 3 if min(len(words(first)), len(words(second))) >= 5 else 2
    a, b = ngrams(first, n), ngrams(second, n)
    return len(a & b) / max(1, len(a | b))


def near_duplicates(texts: dict[str, str]) -> list[tuple[float, str, str]]:
    """Pairs of keys more alike than MAX_SIMILARITY, with their similarity, worst first."""
    pairs = ((similarity(texts[a], texts[b]), a, b) for a, b in combinations(texts, 2))
    return sorted((pair for pair in pairs if pair[0] > MAX_SIMILARITY), reverse=True)


def shared_openings(texts: dict[str, str]) -> dict[tuple[str, ...], int]:
    """Opening 3-grams that stand in more than MAX_SHARED_OPENINGS texts, with their counts."""
    openings = Counter(words(text)[:3] for text in texts.values())
    return {opening: n for opening, n in openings.items() if n > MAX_SHARED_OPENINGS}


@pytest.mark.parametrize("name", COUNTS)
def test_rows_have_the_documented_count_keys_and_ids(name):
    rows = ROWS[name]
    assert len(rows) == COUNTS[name]
    assert all(set(row) == KEYS[name] for row in rows)
    width = 1 if name == "prompts" else 2
    assert [row["id"] for row in rows] == [f"{name[0]}{i:0{width}d}" for i in range(1, len(rows) + 1)]
    assert all(
        isinstance(row[key], str) and row[key].strip()
        for row in rows
        for key in KEYS[name] - {"label", "flag"}
    )


def test_ids_and_prompts_are_unique_across_files():
    assert len(PROMPTS) == sum(COUNTS.values())
    assert len({" ".join(words(prompt)) for prompt in PROMPTS.values()}) == sum(COUNTS.values())


def test_labels_and_flags():
    assert all(row["label"] is False for row in ROWS["negatives"])
    assert all(row["label"] is True for row in ROWS["good"])
    assert Counter(row["flag"] for row in ROWS["negatives"]) == {"": 80, "mislabelled": 10, "harmless": 6}


def test_flagged_rows_are_spread_over_the_file():
    flagged = [i for i, row in enumerate(ROWS["negatives"]) if row["flag"]]
    assert all(any(low <= i < low + 24 for i in flagged) for low in range(0, 96, 24))
    assert min(b - a for a, b in pairwise(flagged)) > 1


def test_lengths():
    assert {id: p for id, p in PROMPTS.items() if not 4 <= len(words(p)) <= 16} == {}
    assert {id: a for id, a in ANSWERS.items() if not 3 <= len(words(a)) <= 40} == {}
    assert 16 <= mean(len(words(answer)) for answer in ANSWERS.values()) <= 20


@pytest.mark.parametrize("name", ["validation", "test"])
def test_length_does_not_tell_chosen_from_rejected(name):
    pairs = [(row["id"], len(words(row["chosen"])), len(words(row["rejected"]))) for row in ROWS[name]]
    assert [pair for pair in pairs if max(pair[1:]) > 1.3 * min(pair[1:])] == []
    assert abs(mean(chosen - rejected for _, chosen, rejected in pairs)) <= 0.5


@pytest.mark.parametrize("texts", [PROMPTS, ANSWERS], ids=["prompts", "answers"])
def test_no_near_duplicates(texts):
    assert near_duplicates(texts) == []


def test_answers_open_in_many_ways():
    assert shared_openings(ANSWERS) == {}


def test_the_measure_catches_a_planted_near_duplicate():
    longer = ANSWERS["n08.completion"]
    twin = longer.replace("plastic", "wooden").replace(".", "!").upper()
    assert longer != twin
    assert {pair[1:] for pair in near_duplicates({**ANSWERS, "planted": twin})} == {
        ("n08.completion", "planted")
    }
    short = {**PROMPTS, "planted": "Who wrote Pride and Prejudice, please?"}
    assert {pair[1:] for pair in near_duplicates(short)} == {("g34", "planted")}


def test_a_template_opening_is_caught():
    planted = {f"x{i}": f"Oh, how brave of you to mention subject {i}." for i in range(4)}
    assert shared_openings({**ANSWERS, **planted}) == {("oh", "how", "brave"): 5}


def test_similarity_by_hand():
    """3-grams abc bcd cde and abc bcd cdf: 2 of 4 shared. 2-grams ab bc and ab bd: 1 of 3 shared."""
    assert similarity("a b c d e", "A, b c d f!") == 2 / 4
    assert similarity("a b c", "a b d") == 1 / 3
    assert similarity("a b c", "d e f") == 0
