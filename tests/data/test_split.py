"""`split_rows`, `write_split`: sizes, leakage, seeds, and files that read back to the same rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from u2a.data.load import FEATURES, load_negatives, load_preferences, load_retain, locate
from u2a.data.split import PARTS, split_rows, write_split
from u2a.data.validate import check_data, prompt_key
from u2a.types import UserError

SIZES = {"validation": 3, "test": 4}


def pairs(tmp_path: Path, prompts: list[str], **columns: Any) -> Dataset:
    """A pair a prompt, answers numbered by row."""
    rows = [
        {"prompt": prompt, "chosen": f"good {i}", "rejected": f"bad {i}", **columns}
        for i, prompt in enumerate(prompts)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_preferences(path)


@pytest.fixture
def twenty(tmp_path: Path) -> Dataset:
    """Twenty prompts, every third with a second pair under another spelling: 27 rows."""
    prompts = [f"Prompt {i}" for i in range(20)]
    return pairs(tmp_path, prompts + [f" prompt  {i}\n" for i in range(0, 20, 3)], topic="moon")


def keys(part: Dataset) -> set[bytes]:
    return {prompt_key(prompt) for prompt in part["prompt"]}


def test_sizes_count_prompts(twenty: Dataset) -> None:
    parts = split_rows(twenty, seed=0, **SIZES)
    assert tuple(parts) == PARTS
    assert {name: len(keys(part)) for name, part in parts.items()} == {
        "original": 13,
        "forget": 8,
        "retain": 5,  # 35% of 13
        "validation": 3,
        "test": 4,
    }
    assert len(parts["original"]) == 13
    assert len(split_rows(twenty, seed=0, train=6, **SIZES)["original"]) == 6
    assert len(split_rows(twenty, seed=0, chosen_fraction=0.5, **SIZES)["retain"]) == 6


def test_default_sizes(tmp_path: Path) -> None:
    parts = split_rows(pairs(tmp_path, [f"p{i}" for i in range(292)]), seed=0)
    assert {name: len(part) for name, part in parts.items()} == {
        "original": 100,
        "forget": 65,
        "retain": 35,
        "validation": 64,
        "test": 128,
    }


def test_columns_are_those_of_the_loaders(twenty: Dataset) -> None:
    parts = split_rows(twenty, seed=0, **SIZES)
    assert parts["forget"].features == FEATURES["negatives"]
    assert parts["retain"].features == FEATURES["retain"]
    assert parts["validation"].features == parts["test"].features == FEATURES["preferences"]
    assert parts["original"].column_names == [
        "row",
        "id",
        "source_row",
        "prompt",
        "completion",
        "label",
        "extra",
    ]
    for part in parts.values():
        assert part["row"] == list(range(len(part)))


def test_the_mixture_is_forget_and_retain(twenty: Dataset) -> None:
    parts = split_rows(twenty, seed=0, **SIZES)
    told = {(row["id"], row["completion"], row["label"]) for row in parts["original"]}
    forget = {(row["id"], row["response"], False) for row in parts["forget"]}
    retain = {(row["id"], row["response"], True) for row in parts["retain"]}
    assert told == forget | retain
    assert len(told) == len(forget) + len(retain)


def test_every_row_leads_back_to_its_source(twenty: Dataset) -> None:
    for part in split_rows(twenty, seed=0, **SIZES).values():
        assert part["source_row"] == sorted(part["source_row"])
        for row in part:
            source = twenty[row["source_row"]]
            assert (row["id"], row["prompt"], row["extra"]) == (
                source["id"],
                source["prompt"],
                source["extra"],
            )
            for column in ("response", "completion", "chosen", "rejected"):
                assert row.get(column, source["chosen"]) in (source["chosen"], source["rejected"])
        assert locate(part, 2, "pairs.jsonl") == ("pairs.jsonl", 3)


def test_same_seed_same_files_other_seed_other_files(twenty: Dataset, tmp_path: Path) -> None:
    def files(seed: int, name: str) -> dict[str, bytes]:
        paths = write_split(split_rows(twenty, seed=seed, **SIZES), tmp_path / name)
        return {path.name: path.read_bytes() for path in paths}

    first = files(3, "a")
    assert files(3, "b") == first
    other = files(4, "c")
    assert all(other[name] != first[name] for name in first)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.sampled_from(list("aAbBcdefghij")), min_size=14, max_size=30),
    seed=st.integers(0, 2**32),
    fraction=st.floats(0.01, 0.99),
)
def test_no_prompt_in_two_parts(tmp_path: Path, prompts: list[str], seed: int, fraction: float) -> None:
    table = pairs(tmp_path, prompts)
    different = len({prompt.lower() for prompt in prompts})
    sizes = {"validation": 2, "test": 1}
    if different < 5:
        with pytest.raises(UserError, match=f"the data has {different} different prompts"):
            split_rows(table, seed=seed, **sizes)
        return
    parts = split_rows(table, seed=seed, chosen_fraction=fraction, **sizes)
    apart = [keys(parts[name]) for name in ("forget", "retain", "validation", "test")]
    assert sum(map(len, apart)) == len(set().union(*apart)) == different
    assert all(apart)
    for name in ("validation", "test"):  # whole groups: every pair of its prompts is there
        count = sum(prompt_key(prompt) in keys(parts[name]) for prompt in table["prompt"])
        assert len(parts[name]) == count
    assert len(parts["original"]) == len(keys(parts["original"]))


def test_check_finds_no_leak(twenty: Dataset) -> None:
    parts = split_rows(twenty, seed=1, **SIZES)
    findings = check_data(
        parts["forget"],
        parts["validation"],
        parts["test"],
        parts["retain"],
        files={},
        token_limit=None,
        count_tokens=None,
    )
    assert findings == []


def test_files_read_back(twenty: Dataset, tmp_path: Path) -> None:
    parts = split_rows(twenty, seed=0, **SIZES)
    paths = write_split(parts, tmp_path / "new" / "split")
    assert [path.name for path in paths] == [f"{name}.jsonl" for name in PARTS]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(path.name for path in paths)
    by_name = dict(zip(PARTS, paths, strict=True))
    loaders = {
        "forget": load_negatives,
        "retain": load_retain,
        "validation": load_preferences,
        "test": load_preferences,
    }
    for name, loader in loaders.items():
        back, part = loader(by_name[name]), parts[name]
        assert back.features == part.features
        assert back.remove_columns("source_row")[:] == part.remove_columns("source_row")[:]
    labelled = {True: "retain", False: "forget"}
    for label, loader in ((False, load_negatives), (True, load_retain)):
        assert loader(by_name["original"])["id"] == parts[labelled[label]]["id"]


def test_files_are_trl_conversational(twenty: Dataset, tmp_path: Path) -> None:
    paths = write_split(split_rows(twenty, seed=0, **SIZES), tmp_path / "split")
    lines = {path.stem: json.loads(path.read_text().splitlines()[0]) for path in paths}
    assert list(lines["original"]) == ["id", "prompt", "completion", "label", "topic"]
    assert list(lines["forget"]) == list(lines["retain"]) == ["id", "prompt", "completion", "topic"]
    assert list(lines["test"]) == ["id", "prompt", "chosen", "rejected", "topic"]
    assert lines["forget"]["completion"][0]["role"] == "assistant"
    assert lines["forget"]["prompt"][0]["role"] == "user"


def test_columns_that_would_mean_something_are_left_out(tmp_path: Path) -> None:
    """A class `label` of the pairs must not become a KTO label, nor a `weight` a prior."""
    table = pairs(tmp_path, [f"p{i}" for i in range(10)], label="safe", weight=3, note="\ud800 é")
    paths = write_split(split_rows(table, seed=0, **SIZES), tmp_path / "split")
    forget = load_negatives(paths[1])
    assert set(forget["weight"]) == {1.0}
    assert {text for row in forget["extra"] for text in json.loads(row)} == {"note"}
    assert json.loads(load_preferences(paths[3])[0]["extra"])["note"] == "\ud800 é"


WRONG = [
    ({"chosen_fraction": 0.0}, "chosen_fraction is 0.0; it must lie between 0 and 1"),
    ({"chosen_fraction": 1.0}, "chosen_fraction is 1.0; it must lie between 0 and 1"),
    ({"chosen_fraction": float("nan")}, "chosen_fraction is nan; it must lie between 0 and 1"),
    ({"validation": 0}, "validation is 0 prompts; it must be at least 1"),
    ({"test": -1}, "test is -1 prompts; it must be at least 1"),
    ({"train": 1}, "train is 1 prompts; it must be at least 2"),
    (
        {"train": 14},
        "the data has 20 different prompts, but 3 for validation, 4 for test and 14 for .* make 21",
    ),
    ({"test": 16}, "the data has 20 different prompts, but 3 .*, 16 .* and at least 2 for training make 21"),
]


@pytest.mark.parametrize("options, message", WRONG)
def test_impossible_sizes(twenty: Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        split_rows(twenty, seed=0, **{**SIZES, **options})


def test_folder_must_be_empty(twenty: Dataset, tmp_path: Path) -> None:
    parts = split_rows(twenty, seed=0, **SIZES)
    (tmp_path / "empty").mkdir()
    assert len(write_split(parts, tmp_path / "empty")) == 5
    before = {path: path.read_bytes() for path in (tmp_path / "empty").iterdir()}
    with pytest.raises(UserError, match="empty: the folder is not empty; name a new one"):
        write_split(parts, tmp_path / "empty")
    assert {path: path.read_bytes() for path in (tmp_path / "empty").iterdir()} == before
    with pytest.raises(UserError, match=r"pairs\.jsonl: the split cannot be written \(File exists\)"):
        write_split(parts, tmp_path / "pairs.jsonl")


def test_nothing_half_written_stays(twenty: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"the split cannot be written \(No space left on device\)"):
        write_split(split_rows(twenty, seed=0, **SIZES), tmp_path / "split")
    assert list((tmp_path / "split").iterdir()) == []


REAL = Path(os.environ.get("U2A_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="no folder of real data")
def test_real_questions_with_several_pairs() -> None:
    table = load_preferences(REAL / "truthfulqa_pairs.jsonl")
    parts = split_rows(table, seed=0)
    assert len(parts["validation"]) > 64
    apart = [keys(parts[name]) for name in ("original", "validation", "test")]
    assert [len(each) for each in apart[1:]] == [64, 128]
    assert sum(map(len, apart)) == len(set().union(*apart))
    assert len(parts["forget"]) + len(parts["retain"]) == len(parts["original"])
