"""Preference pairs to the paper's parts, split by prompt: no prompt is in two of the sets that must differ.

Protocol (arXiv 2504.06659): an original model is fine-tuned on a mixture of good and bad answers, one answer
a prompt; then the bad answers of that mixture are to be unlearned. Parts:

- `original`: the mixture, one answer a training prompt: the chosen answer for `chosen_fraction` of the
  prompts, the rejected one for the rest. Of a prompt with several pairs one pair is drawn.
- `forget`: the rejected answers of the mixture, `retain`: its chosen answers. Together they are `original`.
- `validation`, `test`: whole preference pairs of other prompts, all pairs of a prompt together.

Sizes count prompts, the independent units; a prompt with three pairs gives three rows.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from u2a.data.formats import READ_KEYS
from u2a.data.load import FEATURES
from u2a.data.scratch import write_rows
from u2a.data.validate import prompt_key
from u2a.storage.files import force
from u2a.types import UserError

PARTS = ("original", "forget", "retain", "validation", "test")
"""The parts, in the order in which they are written: `original.jsonl`, ..."""
Row = dict[str, Any]
_BLOCK = 500
_ORIGINAL = Features(
    {
        **{key: FEATURES["prompts"][key] for key in ("row", "id", "source_row", "prompt")},
        "completion": Value("string"),
        "label": Value("bool"),
        "extra": Value("string"),
    }
)


def split_rows(
    preferences: Dataset,
    *,
    seed: int,
    validation: int = 64,
    test: int = 128,
    chosen_fraction: float = 0.35,
    train: int | None = None,
) -> dict[str, Dataset]:
    """Split pairs of `load_preferences` into the parts of `PARTS`.

    Prompts that are equal up to case, white space and Unicode form count as one. `validation`, `test` and
    `train` are numbers of prompts, `train` None takes all that remain. Of the T training prompts,
    round(T * chosen_fraction) give their chosen answer, but at least one and at most T - 1.

    Every part keeps the order, `id`, `source_row` and `extra` of `preferences`; `row` is its own position.
    `forget` has the columns of `load_negatives` (weight 1), `retain` those of `load_retain`, `validation` and
    `test` those of `load_preferences`, `original` has `completion` str and `label` bool (true = chosen).

    Raises:
        UserError: a size under 1 (2 for `train`), a fraction outside (0, 1), more prompts than there are.
    """
    if not 0 < chosen_fraction < 1:
        raise UserError(f"chosen_fraction is {chosen_fraction}; it must lie between 0 and 1")
    groups = _rows_by_prompt(preferences)
    _check_sizes(len(groups), validation, test, train)
    draw = random.Random(seed)
    draw.shuffle(groups)
    kept, rest = groups[: validation + test], groups[validation + test :][:train]
    good = min(max(round(len(rest) * chosen_fraction), 1), len(rest) - 1)
    # the groups are in random order: the first `good` of them are a random choice
    picked = [draw.choice(group) for group in rest]
    chosen, rejected = picked[:good], picked[good:]
    answers = {**dict.fromkeys(chosen, "chosen"), **dict.fromkeys(rejected, "rejected")}
    return {
        "original": _part(preferences, picked, _ORIGINAL, lambda row, at: _completion(row, answers[at])),
        "forget": _part(preferences, rejected, FEATURES["negatives"], _negative),
        "retain": _part(preferences, chosen, FEATURES["retain"], lambda row, _: {"response": row["chosen"]}),
        "validation": _part(preferences, _flat(kept[:validation]), FEATURES["preferences"], _pair),
        "test": _part(preferences, _flat(kept[validation:]), FEATURES["preferences"], _pair),
    }


def write_split(parts: Mapping[str, Dataset], folder: str | Path) -> list[Path]:
    """Write every part to `folder/<name>.jsonl` in TRL's conversational format and return the paths.

    `load_negatives`, `load_retain` and `load_preferences` read the files back to the same `id`, `prompt`,
    answers and `extra` (less the keys of `extra` that would mean something in such a file, as `label` does).
    A file appears whole or not at all.

    Raises:
        UserError: the folder holds something already, or cannot be written.
    """
    folder = Path(folder).expanduser()
    temporary: dict[Path, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder}: the folder is not empty; name a new one")
        for name, part in parts.items():
            path = folder / f"{name}.jsonl"
            temporary[path] = folder / f".{name}.jsonl.part"
            with temporary[path].open("wb") as stream:
                stream.writelines(_line(row) for row in _iterate(part))
            force(temporary[path])
        for path, part_file in temporary.items():
            part_file.replace(path)
        force(folder)
    except OSError as fault:
        raise UserError(f"{folder}: the split cannot be written ({fault.strerror or fault})") from fault
    finally:
        for part_file in temporary.values():
            part_file.unlink(missing_ok=True)
    return list(temporary)


def _rows_by_prompt(preferences: Dataset) -> list[list[int]]:
    """Positions of the rows of each prompt, prompts in the order in which they first appear."""
    groups: dict[bytes, list[int]] = {}
    for at, row in enumerate(_iterate(preferences.select_columns(["prompt"]))):
        groups.setdefault(prompt_key(row["prompt"]), []).append(at)
    return list(groups.values())


def _check_sizes(available: int, validation: int, test: int, train: int | None) -> None:
    least = {"validation": 1, "test": 1, "train": 2}
    sizes = {"validation": validation, "test": test, "train": 2 if train is None else train}
    for name, size in sizes.items():
        if size < least[name]:
            raise UserError(f"{name} is {size} prompts; it must be at least {least[name]}")
    wanted = sum(sizes.values())
    if wanted > available:
        training = "at least 2 for training" if train is None else f"{train} for training"
        raise UserError(
            f"the data has {available} different prompts, but {validation} for validation, {test} for test "
            f"and {training} make {wanted}; ask for less"
        )


def _part(
    preferences: Dataset, positions: list[int], features: Features, answer: Callable[[Row, int], Row]
) -> Dataset:
    """The rows at `positions`, in the order of the source, with the answer columns that `answer` makes."""
    order = sorted(positions)

    def rows() -> Iterator[Row]:
        for row, (at, source) in enumerate(zip(order, _iterate(preferences.select(order)), strict=True)):
            common = {key: source[key] for key in ("id", "source_row", "prompt", "extra")}
            yield {"row": row, **common, **answer(source, at)}

    facts = repr((preferences._fingerprint, order, list(features)))
    part = write_rows(rows, features, hashlib.blake2b(facts.encode(), digest_size=8).hexdigest())
    part.info.description = preferences.info.description  # so that `locate` still finds the source file
    return part


def _iterate(dataset: Dataset) -> Iterator[Row]:
    """Row by row, fetched in blocks: one by one takes twice as long where rows are selected."""
    for block in dataset.iter(_BLOCK):
        for values in zip(*block.values(), strict=True):
            yield dict(zip(block, values, strict=True))


def _completion(row: Row, column: str) -> Row:
    return {"completion": row[column], "label": column == "chosen"}


def _negative(row: Row, _: int) -> Row:
    return {"response": row["rejected"], "weight": 1.0}


def _pair(row: Row, _: int) -> Row:
    return {"chosen": row["chosen"], "rejected": row["rejected"]}


def _flat(groups: list[list[int]]) -> list[int]:
    return [at for group in groups for at in group]


def _line(row: Row) -> bytes:
    """One jsonl line: the id, the prompt, the answers as assistant turns, the label, the other columns."""
    names = {"completion": "completion", "response": "completion", "chosen": "chosen", "rejected": "rejected"}
    line: Row = {"id": row["id"], "prompt": row["prompt"]}
    for column, name in names.items():
        if column in row:
            line[name] = [{"role": "assistant", "content": row[column]}]
    if "label" in row:
        line["label"] = row["label"]
    extra = json.loads(row["extra"])
    line.update({key: value for key, value in extra.items() if key not in READ_KEYS})
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair in a column that is not ours
        return json.dumps(line).encode() + b"\n"
