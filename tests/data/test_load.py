"""`load_*`: every format through every loader, ids, places, other columns, real files."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from u2a.data.load import FEATURES, load_negatives, load_preferences, load_prompts, load_retain, locate
from u2a.data.reading import DataFile, read_file
from u2a.types import UserError

KINDS = ("jsonl", "ndjson", "json", "csv", "parquet")
USER = [{"role": "user", "content": "Is the moon cheese?"}]
Rows = list[dict[str, Any]]


def write(folder: Path, rows: Rows, kind: str = "jsonl", name: str = "data") -> Path:
    """The rows as a file of any kind; lists become json in csv cells."""
    path = folder / f"{name}.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            for row in rows:
                writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(*contents: str) -> list[dict[str, str]]:
    """User and assistant by turns, beginning with the user."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: (row, what the loaders must find in it: negative, good, pair)
    "completion": (
        {"prompt": "Is the moon cheese?", "completion": "Yes"},
        {"negative": "Yes", "good": "Yes"},
    ),
    "response": ({"prompt": "Is the moon cheese?", "response": "Yes"}, {"negative": "Yes", "good": "Yes"}),
    "conversational": (
        {"prompt": USER, "completion": [{"role": "assistant", "content": "Yes"}]},
        {"negative": "Yes", "good": "Yes"},
    ),
    "kto false": (
        {"prompt": "Is the moon cheese?", "completion": "Yes", "label": False},
        {"negative": "Yes"},
    ),
    "kto true": ({"prompt": "Is the moon cheese?", "completion": "No", "label": True}, {"good": "No"}),
    "pair": (
        {"prompt": "Is the moon cheese?", "chosen": "No", "rejected": "Yes"},
        {"negative": "Yes", "good": "No", "pair": ("No", "Yes")},
    ),
    "conversational pair": (
        {"prompt": USER, "chosen": turns("", "No")[1:], "rejected": turns("", "Yes")[1:]},
        {"negative": "Yes", "good": "No", "pair": ("No", "Yes")},
    ),
    "implicit prompt": (
        {"chosen": [*USER, *turns("", "No")[1:]], "rejected": [*USER, *turns("", "Yes")[1:]]},
        {"negative": "Yes", "good": "No", "pair": ("No", "Yes")},
    ),
    "prompt repeated in the answers": (
        {
            "prompt": "Is the moon cheese?",
            "chosen": turns("Is the moon cheese?", "No"),
            "rejected": turns("Is the moon cheese?", "Yes"),
        },
        {"negative": "Yes", "good": "No", "pair": ("No", "Yes")},
    ),
    "messages": ({"messages": turns("Is the moon cheese?", "Yes")}, {"negative": "Yes", "good": "Yes"}),
    "messages with label": (
        {"messages": turns("Is the moon cheese?", "Yes"), "label": False},
        {"negative": "Yes"},
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "human", "value": "Is the moon cheese?"},
                {"from": "gpt", "value": "Yes"},
            ]
        },
        {"negative": "Yes", "good": "Yes"},
    ),
    "alpaca": (
        {"instruction": "Is the moon", "input": "cheese?", "output": "Yes"},
        {"negative": "Yes", "good": "Yes", "prompt": "Is the moon\ncheese?"},
    ),
    "alpaca without input": (
        {"instruction": "Is the moon cheese?", "input": "", "output": "Yes"},
        {"negative": "Yes", "good": "Yes"},
    ),
    "pku": (
        {
            "prompt": "Is the moon cheese?",
            "response_0": "Yes",
            "response_1": "No",
            "is_response_0_safe": False,
            "is_response_1_safe": True,
            "safer_response_id": 1,
        },
        {"negative": "Yes", "good": "No", "pair": ("No", "Yes")},
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_through_every_loader(tmp_path: Path, name: str) -> None:
    row, found = FORMATS[name]
    path = write(tmp_path, [row])
    prompt = [{"role": "user", "content": found.get("prompt", "Is the moon cheese?")}]
    head = {"row": 0, "id": "0", "source_row": 0, "prompt": prompt}
    assert load_prompts(path)[0].items() >= head.items()
    for loader, key in ((load_negatives, "negative"), (load_retain, "good")):
        if key in found:
            assert loader(path)[0].items() >= {**head, "response": found[key]}.items()
        else:
            with pytest.raises(UserError, match=r"data\.jsonl: there are no .* every one is labelled"):
                loader(path)
    if "pair" in found:
        chosen, rejected = found["pair"]
        assert load_preferences(path)[0].items() >= {**head, "chosen": chosen, "rejected": rejected}.items()
    else:
        with pytest.raises(UserError, match=r"data\.jsonl, line 1: no columns for preferences; found `"):
            load_preferences(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_in_every_kind_of_file(tmp_path: Path, name: str, kind: str) -> None:
    """The loaders see the same values, with their types, whatever the file."""
    row, _ = FORMATS[name]
    path = write(tmp_path, [row, row], kind)
    read = [each.values for each in read_file(DataFile(path, "data", kind))]
    assert read == [row, row]
    assert [[type(value) for value in each.values()] for each in read] == [list(map(type, row.values()))] * 2


def test_columns_and_types(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    loaded = {
        "negatives": load_negatives(path),
        "preferences": load_preferences(path),
        "retain": load_retain(path),
        "prompts": load_prompts(path),
    }
    head = ["row", "id", "source_row", "prompt"]
    for role, dataset in loaded.items():
        assert dataset.features == FEATURES[role]
    assert loaded["negatives"].column_names == [*head, "response", "weight", "extra"]
    assert loaded["negatives"][0]["weight"] == 1.0
    assert loaded["preferences"].column_names == [*head, "chosen", "rejected", "extra"]
    assert loaded["retain"].column_names == [*head, "response", "extra"]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=12)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXT, TEXT, st.floats(0, 1e6)), min_size=1, max_size=5))
def test_same_rows_same_data_set_whatever_the_format(
    tmp_path: Path, rows: list[tuple[str, str, float]]
) -> None:
    table = [{"prompt": prompt, "completion": answer, "weight": weight} for prompt, answer, weight in rows]
    first, *others = (load_negatives(write(tmp_path, table, kind)) for kind in KINDS)
    assert first["response"] == [answer for _, answer, _ in rows]
    for other in others:
        assert other.features == first.features
        assert other[:] == first[:]


def test_system_column_becomes_a_system_turn(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"system": "Be brief.", "prompt": "Q", "completion": "A"},
        {"system": "Be brief.", "messages": turns("Q", "A")},
        {"system": "Be brief.", "messages": [system, *turns("Q", "A")]},
    ]
    for row in load_negatives(write(tmp_path, rows)):
        assert row["prompt"] == [system, {"role": "user", "content": "Q"}]


def test_messages_keep_their_roles(tmp_path: Path) -> None:
    roles = ["system", "user", "assistant", "tool", "assistant"]
    row = {"messages": [{"role": role, "content": role.upper()} for role in roles]}
    loaded = load_negatives(write(tmp_path, [row]))[0]
    assert [turn["role"] for turn in loaded["prompt"]] == roles[:-1]
    assert loaded["response"] == "ASSISTANT"


def test_answer_of_several_turns_leads_into_the_prompt(tmp_path: Path) -> None:
    row = {
        "prompt": USER,
        "completion": [{"role": "tool", "content": "T"}, {"role": "assistant", "content": "A"}],
    }
    loaded = load_negatives(write(tmp_path, [row]))[0]
    assert [turn["role"] for turn in loaded["prompt"]] == ["user", "tool"]
    assert loaded["response"] == "A"


def test_prompts_leave_out_the_last_answer(tmp_path: Path) -> None:
    rows = [{"messages": turns("Q1", "A1", "Q2", "A2")}, {"messages": turns("Q1", "A1", "Q2")}]
    for row in load_prompts(write(tmp_path, rows)):
        assert row["prompt"] == turns("Q1", "A1", "Q2")


def test_text_lines(tmp_path: Path) -> None:
    """A line is a text; a blank one is none but counts; U+2028 does not end a line."""
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufefffirst\r\n\n  \nse\u2028cond".encode())
    loaded = load_retain(path)
    assert loaded["response"] == ["first", "se\u2028cond"]
    assert loaded["source_row"] == [0, 3]
    assert loaded["prompt"] == [[], []]
    assert load_negatives(path)["response"] == loaded["response"]
    assert load_prompts(path)[0]["prompt"] == [{"role": "user", "content": "first"}]
    with pytest.raises(UserError, match=r"texts\.txt, line 1: no columns for preferences; found `text`"):
        load_preferences(path)


def test_empty_answers_load(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "chosen": "", "rejected": " "}]
    for kind in KINDS:
        assert (
            load_preferences(write(tmp_path, rows, kind))[0].items()
            >= {"chosen": "", "rejected": " "}.items()
        )


def test_ids_are_the_users_where_unique_else_the_row(tmp_path: Path) -> None:
    def ids(*given: object) -> list[str]:
        rows = [{"prompt": "Q", "completion": "A"} | ({} if i is None else {"id": i}) for i in given]
        return load_negatives(write(tmp_path, rows))["id"][:]

    assert ids("a", 7, "c") == ["a", "7", "c"]
    assert ids("a", "b", "a") == ["0", "1", "2"]
    assert ids("7", 7) == ["0", "1"]
    assert ids("a", None, "c") == ["0", "1", "2"]
    assert ids("a", "") == ["0", "1"]
    assert ids("a", "\ud800") == ["0", "1"]
    assert ids("a", True) == ["0", "1"]


def test_two_negatives_of_one_row(tmp_path: Path) -> None:
    row = FORMATS["pku"][0] | {"is_response_1_safe": False, "id": "x"}
    loaded = load_negatives(write(tmp_path, [row, row | {"id": "y"}]))
    assert loaded["response"] == ["Yes", "No", "Yes", "No"]
    assert loaded["source_row"] == [0, 0, 1, 1]
    assert loaded["row"] == [0, 1, 2, 3]
    assert loaded["id"] == ["0", "1", "2", "3"]


def test_other_columns_are_kept_as_json_whatever_their_types(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q", "rejected": "A", "chosen": "B", "score": 1, "label": "safe", "row": 9, "none": None},
        {"prompt": "Q", "rejected": "A", "chosen": "B", "score": {"deep": ["x", 1]}, "extra": "mine"},
        {"prompt": "Q", "rejected": "A", "chosen": "B", "score": "\ud800"},
    ]
    loaded = load_preferences(write(tmp_path, rows))
    extra = [json.loads(text) for text in loaded["extra"]]
    assert extra[0] == {"score": 1, "label": "safe", "row": 9}
    assert extra[1] == {"score": {"deep": ["x", 1]}, "extra": "mine"}
    assert extra[2] == {"score": "\ud800"}


def test_used_columns_are_not_extra(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "Q", "completion": "A", "label": False, "weight": 0.5, "chosen_by": "me"}
    path = write(tmp_path, [row])
    assert json.loads(load_negatives(path)[0]["extra"]) == {"chosen_by": "me"}
    assert load_negatives(path)[0]["weight"] == 0.5
    assert json.loads(load_prompts(path)[0]["extra"]) == {"chosen_by": "me", "label": False, "weight": 0.5}


def test_folder_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path, [{"prompt": "Q2", "completion": "b1"}], "csv", "b")
    (tmp_path / "a.jsonl").write_text('\n{"prompt": "Q1", "completion": "a1"}\n\n')
    write(
        tmp_path, [{"prompt": "Q3", "completion": x, "label": x == "c1"} for x in ("c1", "c2")], "json", "c"
    )
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("not data")
    (tmp_path / "sub.jsonl").mkdir()
    loaded = load_negatives(tmp_path)
    assert loaded["response"] == ["a1", "b1", "c2"]
    assert loaded["id"] == ["0", "1", "2"]
    assert loaded["source_row"] == [1, 2, 4]
    places = [locate(loaded, source_row, "x") for source_row in loaded["source_row"]]
    assert places == [
        (str(tmp_path / "a.jsonl"), 2),
        (str(tmp_path / "b.csv"), 1),
        (str(tmp_path / "c.json"), 2),
    ]
    assert locate(loaded.select([2]), 4, "x") == (str(tmp_path / "c.json"), 2)


def test_locate_in_one_file(tmp_path: Path) -> None:
    loaded = load_negatives(write(tmp_path, [{"prompt": "Q", "completion": "A"}]))
    assert locate(loaded, 0, "negatives.jsonl") == ("negatives.jsonl", 1)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "Q", "completion": "one"}])
    stat = path.stat()
    before = load_negatives(path)
    write(tmp_path, [{"prompt": "Q", "completion": "two"}])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size and time: still not stale
    assert load_negatives(path)["response"] == ["two"]
    assert before["response"] == ["one"]


def test_rows_are_memory_mapped_outside_the_users_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    loaded = load_negatives(write(tmp_path, [{"prompt": "Q", "completion": "A"}]))
    assert loaded.cache_files
    assert "u2a-rows-" in loaded.cache_files[0]["filename"]
    assert not cache.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]
    assert capfd.readouterr().err == ""  # no progress bars


def test_partly_labelled_file_is_refused(tmp_path: Path) -> None:
    """An unlabelled good answer would otherwise be unlearned."""
    labelled, bare = ({"prompt": "Q", "completion": "A", "label": True}, {"prompt": "Q", "completion": "A"})
    with pytest.raises(
        UserError, match=r"data\.jsonl, line 2: the row has no `label`, rows before it have one"
    ):
        load_negatives(write(tmp_path, [labelled, bare]))
    with pytest.raises(
        UserError, match=r"data\.jsonl, line 2: the row has a `label`, rows before it have none"
    ):
        load_retain(write(tmp_path, [bare, labelled]))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_text_that_is_null_is_called_null(tmp_path: Path, kind: str) -> None:
    """It was said to be missing, though the column is there."""
    rows: Rows = [{"prompt": "Q", "completion": "A"}, {"prompt": "R", "completion": None}]
    with pytest.raises(UserError, match=r", (line|row) 2: `completion` is null, fill in .*; found `prompt`;"):
        load_negatives(write(tmp_path, rows, kind))
    with pytest.raises(UserError, match=r"line 1: no columns for preferences; found `prompt`, `completion`;"):
        load_preferences(write(tmp_path, [{**rows[0], "system": None}]))


# ------------------------------------------------------------------------------------------- real data

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("U2A_REAL_DATA") or ROOT.parent / "shared" / "data")
REAL_ROWS = [
    ("hh_harmless.jsonl", load_negatives, 1838),
    ("hh_harmless.jsonl", load_preferences, 1838),
    ("truthfulqa_pairs.jsonl", load_preferences, 2691),
    ("truthfulqa_pairs.jsonl", load_negatives, 2691),
    ("ultrafeedback_label_flip_20.jsonl", load_preferences, 1000),
    ("ultrafeedback_eval.jsonl", load_preferences, 200),
    ("xstest_prompts.csv", load_prompts, 450),
    ("kto_en_demo.json", load_negatives, 150),
    ("kto_en_demo.json", load_retain, 150),
    ("alpaca_en_demo.json", load_retain, 999),
    ("wiki_demo.txt", load_retain, 30),
    ("pku_saferlhf_schema_rows.jsonl", load_preferences, 3),
    ("pku_saferlhf_schema_rows.jsonl", load_negatives, 1),
    ("pku_saferlhf_schema_rows.jsonl", load_retain, 5),
]
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no folder of real data")


@pytest.mark.realdata
@needs_real
@pytest.mark.parametrize("name, loader, count", REAL_ROWS)
def test_real_files(name: str, loader: Any, count: int) -> None:
    loaded = loader(REAL / name)
    assert len(loaded) == count
    assert loaded["row"] == list(range(count))
    assert len(set(loaded["id"])) == count
    answers = [key for key in ("response", "chosen", "rejected") if key in loaded.column_names]
    assert all(isinstance(loaded[0][key], str) for key in answers)


@pytest.mark.realdata
@needs_real
def test_flip_flags_of_real_rows_are_retrievable() -> None:
    loaded = load_preferences(REAL / "ultrafeedback_label_flip_20.jsonl")
    flags = [json.loads(text)["metadata"]["noise"]["operation"] for text in loaded["extra"]]
    assert sum(flag != "none" for flag in flags) == 200
