"""`check_data`: each kind of finding, at its file and row, and nothing on clean data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from u2a.data.load import load_negatives, load_preferences, load_prompts, load_retain
from u2a.data.validate import Finding, check_data, prompt_key
from u2a.types import Message, UserError

NAMES = {"negatives": "bad.jsonl", "preferences": "pairs.jsonl", "test": "test.jsonl", "retain": "good.jsonl"}


def load(tmp_path: Path, role: str, rows: list[dict[str, Any]]) -> Dataset:
    path = tmp_path / NAMES[role]
    path.write_text("\n".join(map(json.dumps, rows)))
    loaders = {"negatives": load_negatives, "retain": load_retain}
    return loaders.get(role, load_preferences)(path)


def check(tmp_path: Path, *, token_limit: int | None = None, **rows: list[dict[str, Any]]) -> list[Finding]:
    tables = {role: load(tmp_path, role, each) for role, each in rows.items()}

    def words(prompt: list[Message], response: str) -> int:
        return sum(len(turn["content"].split()) for turn in prompt) + len(response.split())

    return check_data(**tables, files=NAMES, token_limit=token_limit, count_tokens=words)


def bad(prompt: str, answer: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer}


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_clean_data_gives_nothing(tmp_path: Path) -> None:
    findings = check(
        tmp_path,
        negatives=[bad("a", "x"), bad("a", "y"), bad("b", "x")],
        preferences=[pair("c", "x", "y"), pair("c", "x", "z")],
        test=[pair("d", "x", "y")],
        retain=[bad("a", "z"), bad("e", "y")],
        token_limit=2,
    )
    assert findings == []


def test_no_data_gives_nothing() -> None:
    assert check_data(files={}, token_limit=None, count_tokens=None) == []


def test_empty_answers(tmp_path: Path) -> None:
    findings = check(
        tmp_path,
        negatives=[bad("a", "x"), bad("b", " \n")],
        preferences=[pair("c", "", "y")],
        retain=[bad("d", "\u3000")],
    )
    assert findings == [
        Finding("bad.jsonl", 2, "empty-response", "the answer is empty; remove the row", True),
        Finding("pairs.jsonl", 1, "empty-response", "the chosen answer is empty; remove the row", True),
        Finding("good.jsonl", 1, "empty-response", "the answer is empty; remove the row", True),
    ]


def test_duplicates_name_the_first(tmp_path: Path) -> None:
    findings = check(
        tmp_path,
        negatives=[bad("a", "x"), bad("b", "x"), bad("A ", " X"), bad("a", "x")],
        preferences=[pair("c", "x", "y"), pair("c", "y", "x"), pair("c", "x", "y")],
    )
    message = "the same as {} and counts twice; remove one"
    assert [finding for finding in findings if finding.kind == "duplicate"] == [
        Finding("bad.jsonl", 3, "duplicate", message.format("bad.jsonl, row 1"), False),
        Finding("bad.jsonl", 4, "duplicate", message.format("bad.jsonl, row 1"), False),
        Finding("pairs.jsonl", 3, "duplicate", message.format("pairs.jsonl, row 1"), False),
    ]


def test_two_equal_answers_of_one_source_row(tmp_path: Path) -> None:
    row = {"prompt": "a", "response_0": "x", "response_1": "x"}
    row |= {"is_response_0_safe": False, "is_response_1_safe": False}
    assert [(f.row, f.kind) for f in check(tmp_path, negatives=[row])] == [(1, "duplicate")]


def test_leaks(tmp_path: Path) -> None:
    findings = check(
        tmp_path,
        negatives=[bad("a", "x"), bad(" B\t", "x"), bad("c", "x")],
        preferences=[pair("q", "x", "y"), pair("b", "y", "z"), pair("c", "y", "z")],
        test=[pair("C", "y", "z")],
    )
    validation = (
        "its prompt is also in the validation preferences (pairs.jsonl, row {}); remove it from one of them"
    )
    test = "its prompt is also in the test set (test.jsonl, row 1); remove it from one of them"
    assert findings == [
        Finding("bad.jsonl", 2, "leak-validation", validation.format(2), False),
        Finding("bad.jsonl", 3, "leak-validation", validation.format(3), False),
        Finding("bad.jsonl", 3, "leak-test", test, False),
        Finding("pairs.jsonl", 3, "leak-test", test, False),
    ]


def test_retain_rows_of_held_out_or_validation_prompts_are_leaks(tmp_path: Path) -> None:
    """The retain term trains on them."""
    findings = check(
        tmp_path,
        preferences=[pair("b", "y", "z")],
        test=[pair("C", "y", "z")],
        retain=[bad("a", "x"), bad("b", "x"), bad("c", "x")],
    )
    assert [(f.file, f.row, f.kind) for f in findings] == [
        ("good.jsonl", 2, "leak-validation"),
        ("good.jsonl", 3, "leak-test"),
    ]


def test_contradictions(tmp_path: Path) -> None:
    findings = check(
        tmp_path,
        negatives=[bad("a", "x"), bad("b", "x"), bad("c", "x")],
        preferences=[pair("a", "x", "y"), pair("d", "x\n", " x")],
        retain=[bad("b", "X"), bad("c", "y")],
    )
    assert [f for f in findings if f.kind == "conflicting-label"] == [
        Finding(
            "bad.jsonl",
            1,
            "conflicting-label",
            "the same answer is a good one in pairs.jsonl, row 1; keep one",
            False,
        ),
        Finding(
            "bad.jsonl",
            2,
            "conflicting-label",
            "the same answer is a good one in good.jsonl, row 1; keep one",
            False,
        ),
        Finding(
            "pairs.jsonl",
            2,
            "conflicting-label",
            "the chosen and the rejected answer are the same, so the pair prefers nothing; remove it",
            True,
        ),
    ]


def test_too_long(tmp_path: Path) -> None:
    rows = {
        "negatives": [bad("a b", "x y"), bad("a", "x y z w")],
        "preferences": [pair("a", "x", "x y z w v")],
    }
    findings = check(tmp_path, token_limit=4, **rows)
    assert [f for f in findings if f.kind == "too-long"] == [
        Finding(
            "bad.jsonl", 2, "too-long", "the prompt and the answer have 5 tokens, over the limit of 4", False
        ),
        Finding(
            "pairs.jsonl",
            1,
            "too-long",
            "the prompt and the rejected answer have 6 tokens, over the limit of 4",
            False,
        ),
    ]
    assert [f for f in check(tmp_path, token_limit=None, **rows) if f.kind == "too-long"] == []


def test_rows_of_a_folder_are_given_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps(bad("a", "x")))
    (tmp_path / "b.jsonl").write_text("\n\n" + json.dumps(bad("a", "x")))
    findings = check_data(
        load_negatives(tmp_path), files={"negatives": str(tmp_path)}, token_limit=None, count_tokens=None
    )
    assert [(f.file, f.row) for f in findings] == [(str(tmp_path / "b.jsonl"), 3)]
    assert f"{tmp_path / 'a.jsonl'}, row 2" in findings[0].message


def test_messages_carry_no_row_text(tmp_path: Path) -> None:
    findings = check(
        tmp_path,
        negatives=[bad("SECRET", "HIDDEN"), bad("SECRET", "HIDDEN"), bad("SECRET", "")],
        preferences=[pair("SECRET", "HIDDEN", "HIDDEN")],
        test=[pair("SECRET", "HIDDEN", "PRIVATE")],
        token_limit=1,
    )
    kinds = {"empty-response", "duplicate", "leak-validation", "leak-test", "conflicting-label", "too-long"}
    assert {f.kind for f in findings} == kinds
    assert not any(word in f.message for f in findings for word in ("SECRET", "HIDDEN", "PRIVATE"))


def user(text: str) -> Message:
    return {"role": "user", "content": text}


@given(st.text(), st.text(alphabet=" \t\n"))
def test_prompt_key_ignores_case_and_space(text: str, space: str) -> None:
    assert prompt_key([user(space + text.strip() + space)]) == prompt_key([user(text.strip())])
    assert prompt_key([user(text.casefold())]) == prompt_key([user(text)])


@pytest.mark.parametrize(
    "one, two",
    [
        ([user("ab")], [user("a b")]),
        ([user("a"), user("b")], [user("a b")]),
        ([user("a")], [{"role": "system", "content": "a"}]),
        ([user("a"), user("")], [user("a")]),
        ([], [user("")]),
    ],
)
def test_prompt_key_tells_prompts_apart(one: list[Message], two: list[Message]) -> None:
    assert prompt_key(one) != prompt_key(two)


def test_prompt_key_ignores_unicode_forms() -> None:
    assert prompt_key([user("caf\u00e9 \ufb01")]) == prompt_key([user("cafe\u0301 fi")])


def test_a_pair_turned_round_contradicts_the_earlier_one(tmp_path: Path) -> None:
    pairs = [pair("a", "x", "y"), pair("b", "y", "x"), pair("a", "y", "X")]
    assert check(tmp_path, preferences=pairs) == [
        Finding(
            "pairs.jsonl",
            3,
            "conflicting-label",
            "pairs.jsonl, row 1 prefers the other of the same two answers; keep one",
            False,
        )
    ]


def test_a_conversation_that_the_template_refuses_is_a_finding(tmp_path: Path) -> None:
    """The rows after it are looked at too."""

    def refuse(prompt: list[Message], response: str) -> int:
        if len(prompt) > 1:
            raise UserError("the chat template refuses the roles")
        return len(response)

    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    answer = [{"role": "assistant", "content": "x"}]
    rows = [{"prompt": turns, "completion": answer}, {"prompt": turns[:1], "completion": answer}]
    table = load(tmp_path, "negatives", rows)
    found = check_data(table, files=NAMES, token_limit=0, count_tokens=refuse)
    assert [(f.row, f.kind, f.fatal) for f in found] == [(1, "template", True), (2, "too-long", False)]


def test_prompts_alone_are_looked_at_as_far_as_they_go(tmp_path: Path) -> None:
    """Repetition and leaks; there is no answer to be empty, good or too long."""
    negatives = load(tmp_path, "negatives", [{"prompt": "b", "completion": "x"}])
    (tmp_path / "ask.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "A "}\n')
    asked = load_prompts(tmp_path / "ask.jsonl")
    files = {"negatives": "bad", "preferences": "ask", "test": "held"}
    found = check_data(negatives, asked, asked, files=files, token_limit=0, count_tokens=None)
    kinds = [(f.file, f.row, f.kind) for f in found]
    assert ("bad", 1, "leak-validation") in kinds
    assert ("ask", 3, "duplicate") in kinds
    assert ("ask", 1, "leak-test") in kinds
    assert not any(f.fatal or f.kind == "conflicting-label" for f in found)
