"""Raw rows to canonical rows: each wrong row is refused with its place and its column."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from u2a.data import formats
from u2a.data.load import load_negatives, load_retain
from u2a.types import UserError

A = {"role": "assistant", "content": "A"}
Q = {"role": "user", "content": "Q"}
READERS: list[Callable[..., list[dict[str, Any]]]] = [
    formats.negatives_of,
    formats.retain_of,
    formats.preferences_of,
    formats.prompts_of,
]
negatives_of, retain_of, preferences_of, prompts_of = READERS
PKU = {
    "prompt": "Q",
    "response_0": "A",
    "response_1": "B",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "safer_response_id": 0,
}

FAULTS = [
    (negatives_of, {}, "no columns for negatives; found nothing; accepted are `prompt` . `completion`.*"),
    (negatives_of, {"prompt": "Q"}, "no columns for negatives; found `prompt`; accepted are .*"),
    (negatives_of, {"completion": "A"}, "no columns for negatives; found `completion`; accepted are .*"),
    (negatives_of, {"rejected": "A"}, "no columns for negatives; found `rejected`; accepted are .*"),
    (negatives_of, {"rejected": [A]}, "no columns for negatives; found `rejected`; accepted are .*"),
    (
        negatives_of,
        {f"k{i}": 1 for i in range(99)},
        r"no columns for negatives; found `k0`, .*, `k11`, \.\.\.; .*",
    ),
    (negatives_of, {"\x1b[31m": 1}, r"no columns for negatives; found `\\x1b\[31m`; .*"),
    (
        retain_of,
        {"prompt": "Q", "rejected": "A"},
        "no columns for retain; found `prompt`, `rejected`; accepted .*",
    ),
    (
        preferences_of,
        {"prompt": "Q", "chosen": "A"},
        "no columns for preferences; found `prompt`, `chosen`; .*",
    ),
    (preferences_of, {"chosen": "A", "rejected": "B"}, "no columns for preferences; found `chosen`, .*"),
    (
        prompts_of,
        {"completion": "A"},
        "no columns for prompts; found `completion`; accepted are `prompt`, .*",
    ),
    (prompts_of, {"chosen": "A"}, "no columns for prompts; found `chosen`; accepted are `prompt`, .*"),
    (prompts_of, {"prompt": ""}, "the prompt is empty"),
    (prompts_of, {"messages": [A]}, "the prompt is empty"),
    (prompts_of, {"prompt": 5}, "`prompt` must be text or a list of messages, it is a number"),
    (
        negatives_of,
        {"prompt": 5, "completion": "A"},
        "`prompt` must be text or a list of messages, it is a number",
    ),
    (
        negatives_of,
        {"prompt": {}, "completion": "A"},
        "`prompt` must be text or a list of .*, it is an object",
    ),
    (
        negatives_of,
        {"prompt": "Q", "completion": True},
        "`completion` must be text or messages, it is true/false",
    ),
    (
        negatives_of,
        {"prompt": "Q", "completion": []},
        "`completion` must be a list of .*, it is an empty list",
    ),
    (
        negatives_of,
        {"prompt": "Q", "completion": [Q]},
        "`completion` must end with an assistant .* with user",
    ),
    (
        negatives_of,
        {"prompt": ["Q"], "completion": "A"},
        "`prompt`, turn 1 must be an object with .* it is text",
    ),
    (negatives_of, {"messages": []}, "`messages` must be a list of messages, it is an empty list"),
    (negatives_of, {"messages": "Q"}, "`messages` must be a list of messages, it is text"),
    (negatives_of, {"messages": [Q]}, "`messages` must end with an assistant turn, it ends with user"),
    (negatives_of, {"messages": [{"content": "A"}]}, r"`messages`, turn 1 has no `role` \(or `from`\)"),
    (
        negatives_of,
        {"messages": [Q, {"role": "bot", "content": "A"}]},
        "`messages`, turn 2 has the unknown role 'bot'.*",
    ),
    (
        negatives_of,
        {"messages": [Q, {"role": 3, "content": "A"}]},
        "`messages`, turn 2 has the unknown role a number;.*",
    ),
    (
        negatives_of,
        {"messages": [Q, {"role": "assistant"}]},
        "`messages`, turn 2: `content` must be text, it is missing",
    ),
    (
        negatives_of,
        {"messages": [Q, A | {"content": [1]}]},
        "`messages`, turn 2: `content` must be text, it is a list",
    ),
    (
        negatives_of,
        {"messages": [A | {"content": "x\udc80"}]},
        "`messages`, turn 1: `content` holds half a surrogate .*",
    ),
    (
        negatives_of,
        {"prompt": "ab\ud800", "completion": "A"},
        "`prompt` holds half a surrogate pair at character 3, .*",
    ),
    (
        negatives_of,
        {"prompt": "Q", "completion": "A", "label": 2},
        "`label` must be true or false, it is a number, 2",
    ),
    (
        negatives_of,
        {"prompt": "Q", "completion": "A", "label": "toxic"},
        "`label` must be true or false, it is text, 'toxic'",
    ),
    (negatives_of, {"text": "A", "weight": -1}, "`weight` is negative; it must be 0 or more"),
    (negatives_of, {"text": "A", "weight": -0.5}, "`weight` is negative; it must be 0 or more"),
    (negatives_of, {"text": "A", "weight": float("nan")}, "`weight` is not finite"),
    (negatives_of, {"text": "A", "weight": float("inf")}, "`weight` is not finite"),
    (negatives_of, {"text": "A", "weight": 10**400}, "`weight` is not finite"),
    (negatives_of, {"text": "A", "weight": "1"}, "`weight` must be a number, it is text"),
    (negatives_of, {"text": "A", "weight": True}, "`weight` must be a number, it is true/false"),
    (negatives_of, {"text": "A", "system": 1}, "`system` must be text, it is a number"),
    (negatives_of, {"instruction": "Q", "input": 1, "output": "A"}, "`input` must be text, it is a number"),
    (negatives_of, {"text": 5}, "`text` must be text, it is a number"),
    (
        negatives_of,
        {"system": "S", "messages": [{"role": "system", "content": "T"}, Q, A]},
        "the `system` column and the conversation's own system turn differ",
    ),
    (
        negatives_of,
        PKU | {"is_response_1_safe": "no"},
        "`is_response_1_safe` must be true or false, it is text, 'no'",
    ),
    (negatives_of, PKU | {"response_1": 1}, "`response_1` must be text, it is a number"),
    (preferences_of, PKU | {"safer_response_id": 2}, "`safer_response_id` must be 0 or 1"),
    (preferences_of, PKU | {"safer_response_id": True}, "`safer_response_id` must be 0 or 1"),
    (
        preferences_of,
        {"chosen": [Q, A], "rejected": [{"role": "user", "content": "other"}, A]},
        "`chosen` and `rejected` do not answer the same conversation; .*",
    ),
]


@pytest.mark.parametrize("read, row, message", FAULTS)
def test_wrong_row_is_refused_with_its_place(
    read: Callable[..., object], row: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^f, row 9: {message}$"):
        read(row, "f, row 9")


def test_the_loader_names_file_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    rows = [{"prompt": "Q", "completion": "A"}, {"prompt": 5, "completion": "A"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=rf"^{path}, line 2: `prompt` must be text"):
        load_negatives(path)


def test_no_message_shows_row_text(tmp_path: Path) -> None:
    """Rows are private: a fault names the column, not what is in it."""
    path = tmp_path / "bad.jsonl"
    for row in ({"prompt": "SECRET", "completion": 1}, {"messages": [{"role": "user", "content": "SECRET"}]}):
        path.write_text(json.dumps(row))
        with pytest.raises(UserError) as fault:
            load_negatives(path)
        assert "SECRET" not in str(fault.value)


def test_tool_calls_of_a_message_are_dropped() -> None:
    row = {"messages": [Q | {"name": "x"}, A | {"tool_calls": None}]}
    assert negatives_of(row, "")[0]["prompt"] == [Q]


def test_llama_factory_pairs() -> None:
    row = {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "A"},
        "rejected": {"from": "gpt", "value": "B"},
    }
    assert preferences_of(row, "") == [{"prompt": [Q], "chosen": "A", "rejected": "B"}]
    assert prompts_of(row, "") == [{"prompt": [Q]}]


def test_messages_beside_implicit_prompts() -> None:
    """A whole conversation beside a pair is not its prompt: the answers bring their own."""
    row = {"messages": [Q, A], "chosen": [Q, A], "rejected": [Q, A | {"content": "B"}]}
    assert preferences_of(row, "") == [{"prompt": [Q], "chosen": "A", "rejected": "B"}]


def test_system_column_beside_repeated_prompt() -> None:
    row = {"system": "S", "prompt": "Q", "chosen": [Q, A], "rejected": [Q, A]}
    assert preferences_of(row, "")[0]["prompt"] == [{"role": "system", "content": "S"}, Q]


def test_system_turn_only_in_the_answers() -> None:
    system = {"role": "system", "content": "S"}
    row = {"prompt": "Q", "chosen": [system, Q, A], "rejected": [system, Q, A]}
    assert preferences_of(row, "")[0]["prompt"] == [system, Q]


def test_kto_tag_is_a_label() -> None:
    row = {"messages": [Q, A], "kto_tag": True}
    assert negatives_of(row, "") == []
    assert retain_of(row, "") == [{"prompt": [Q], "response": "A"}]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("good, bad", [(1.0, 0.0), ("1.0", "0.0"), ("True", "FALSE"), ("1", "0"), (1, 0)])
def test_labels_as_pandas_writes_them(tmp_path: Path, kind: str, good: Any, bad: Any) -> None:
    table = pandas.DataFrame({"prompt": ["Q", "R"], "completion": ["A", "B"], "label": [good, bad]})
    path = tmp_path / f"rows.{kind}"
    write: dict[str, Callable[[], Any]] = {
        "jsonl": lambda: table.to_json(path, orient="records", lines=True),
        "csv": lambda: table.to_csv(path, index=False),
        "parquet": lambda: table.to_parquet(path),
    }
    write[kind]()
    assert load_negatives(path)["response"][:] == ["B"]
    assert load_retain(path)["response"][:] == ["A"]


def test_a_good_row_is_checked_also_where_it_is_not_wanted() -> None:
    with pytest.raises(UserError, match="`completion` must be text"):
        negatives_of({"prompt": "Q", "completion": 1, "label": True}, "f")


def test_deep_extra_column() -> None:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(UserError, match=r"^f, row 9: a column is nested too deeply to be kept; remove it$"):
        formats.extra_of({"note": deep}, frozenset(), "f, row 9")
    while deep:  # taken apart by hand: the interpreter would recurse to free it
        deep = deep[0]


KEYS = sorted(formats.READ_KEYS | {"safer_response_id", "is_response_0_safe", "is_response_1_safe", "other"})
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from([A, Q]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None)
@given(row=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
@pytest.mark.parametrize("read", READERS)
def test_any_row_gives_canonical_rows_or_a_user_error(
    read: Callable[..., list[dict[str, Any]]], row: dict[str, Any]
) -> None:
    values = {key: value for key, value in row.items() if value is not None}
    try:
        found = read(values, "f, row 9")
    except UserError as fault:
        located = str(fault).startswith("f, row 9: ")
        found = []
    else:
        located = True
    assert located
    for item in found:
        assert all(set(turn) == {"role", "content"} for turn in item["prompt"])
        assert all(isinstance(item[key], str) for key in ("response", "chosen", "rejected") if key in item)
    assert isinstance(json.loads(formats.extra_of(values, frozenset(), "f")), dict)


def test_a_number_too_long_to_be_kept_is_named() -> None:
    """Found by fuzzing: json refuses such a number itself, other sources of rows may not."""
    with pytest.raises(UserError, match="f, row 9: a column holds a number too long"):
        formats.extra_of({"other": 16**5000}, frozenset(), "f, row 9")


def test_a_fraction_is_no_response_id() -> None:
    row = {"prompt": "Q", "response_0": "A", "response_1": "B", "safer_response_id": 1.0}
    with pytest.raises(UserError, match="`safer_response_id` must be 0 or 1"):
        formats.preferences_of(row, "f, row 9")
