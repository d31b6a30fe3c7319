"""From a file, folder, Hub data set or standard input to canonical rows, memory-mapped through `datasets`.

A source is a path to a jsonl, json, csv, parquet, arrow or txt file, a folder of such files (read in the
order of their names; sub-folders, hidden files and other endings are left out; of a folder that `datasets`
saved its arrow files), `-` for jsonl on standard input, or a Hub id `org/name` where no such path exists;
from Python also a list of rows (mappings of columns) or a `datasets.Dataset`. The same rows give the same
data set, whatever the format.

Columns of every result: `row` int64 (position in the result, 0..N-1), `id` str (the source's `id` where every
row has one and no two are equal, else str(row)), `source_row` int64 (0-based position in the source, over all
its files; `locate` turns it into file and row), `prompt` list of {role, content}, and last `extra` str: the
other columns that are not null, as one json object. Columns that hold texts of another format (`chosen`
beside a negative, say) are not kept.

The rows lie in the process's temporary folder (`u2a.data.scratch`); nothing is kept between runs.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, Value

from u2a.data import formats
from u2a.data.labels import UnreadLabels, labelled_alike
from u2a.data.limits import refuse_endless
from u2a.data.own_tables import refuse_impact_table
from u2a.data.raw_rows import numbered_rows, tables
from u2a.data.reading import Row
from u2a.data.scratch import write_rows
from u2a.data.sources import GIVEN, Given, Source, find_source
from u2a.types import UserError

_TEXT = Value("string")
_HEAD = {
    "row": Value("int64"),
    "id": _TEXT,
    "source_row": Value("int64"),
    "prompt": [{"role": _TEXT, "content": _TEXT}],
}
_LABELS = frozenset((*formats.LABEL_KEYS, "is_response_0_safe", "is_response_1_safe"))


@dataclass(frozen=True)
class _Role:
    """What a source is read for: its columns, the conversion of a row, the columns that uses up."""

    name: str
    columns: dict[str, Any]
    convert: Callable[[formats.Values, str], list[dict[str, Any]]]
    used: frozenset[str]
    nothing: str

    @property
    def features(self) -> Features:
        return Features({**_HEAD, **self.columns, "extra": _TEXT})


_NEGATIVES = _Role(
    "negatives",
    {"response": _TEXT, "weight": Value("float64")},
    formats.negatives_of,
    _LABELS | {"weight"},
    "there are no negatives among its rows: every one is labelled good",
)
_PREFERENCES = _Role(
    "preferences",
    {"chosen": _TEXT, "rejected": _TEXT},
    formats.preferences_of,
    frozenset({"safer_response_id"}),
    "there are no pairs",
)
_RETAIN = _Role(
    "retain",
    {"response": _TEXT},
    formats.retain_of,
    _LABELS,
    "there are no good texts among its rows: every one is labelled bad",
)
_PROMPTS = _Role("prompts", {}, formats.prompts_of, frozenset(), "there are no prompts")
FEATURES = {role.name: role.features for role in (_NEGATIVES, _PREFERENCES, _RETAIN, _PROMPTS)}
"""The columns of each role's data set."""


def load_negatives(source: Given, *, split: str = "train") -> Dataset:
    """Negatives: the common columns (see the module) with `response` str and `weight` float64 (prior, or 1).

    A negative is a completion without label or with a false one, a `rejected`, an unsafe PKU-SafeRLHF
    response (one source row may give two), the last assistant turn of `messages`, or a `text` (prompt []).
    An empty response is not an error here; `u2a.data.validate` reports it. `split` is read for Hub data sets.

    Raises:
        UserError: missing, empty or unreadable file; a row that is broken or of the wrong types, a file that
            is labelled in part; no negatives. It names the file, the 1-based line or row, and the column.

    Example:
        >>> from u2a import load_negatives
        >>> load_negatives([{"prompt": "Hello!", "completion": "Go away."}])["response"][:]
        ['Go away.']
    """
    return _load(source, _NEGATIVES, split)


def load_preferences(source: Given, *, split: str = "train") -> Dataset:
    """Preference pairs: the common columns with `chosen` and `rejected` str.

    Raises:
        UserError: as `load_negatives`; also when the two do not answer the same conversation.

    Example:
        >>> from u2a import load_preferences
        >>> load_preferences([{"prompt": "Tea?", "chosen": "Yes, please.", "rejected": "No."}])["chosen"][:]
        ['Yes, please.']
    """
    return _load(source, _PREFERENCES, split)


def load_retain(source: Given, *, split: str = "train") -> Dataset:
    """Good texts: the common columns with `response` str.

    A good text is a completion or output without label or with a true one, a `chosen`, a safe PKU-SafeRLHF
    response, the last assistant turn of `messages`, or a `text` (prompt []).

    Raises:
        UserError: as `load_negatives`.

    Example:
        >>> from u2a import load_retain
        >>> load_retain([{"text": "Water boils at 100 degrees."}])["response"][:]
        ['Water boils at 100 degrees.']
    """
    return _load(source, _RETAIN, split)


def load_prompts(source: Given, *, split: str = "train") -> Dataset:
    """Prompts alone: the common columns. A line of a txt file is one prompt.

    Raises:
        UserError: as `load_negatives`; also when a prompt is empty.
    """
    return _load(source, _PROMPTS, split)


def locate(dataset: Dataset, source_row: int, name: str = "") -> tuple[str, int]:
    """File and 1-based row (line, for jsonl and txt) of a `source_row`.

    The file is `name` unless the data set came from a folder of several files: then it is that file. Without
    a name it is the source's own.
    """
    starts = _file_starts(dataset.info.description)
    if len(starts) < 2:
        return name or (starts[0][0] if starts else GIVEN), source_row + 1
    file, start = max((each for each in starts if each[1] <= source_row), key=lambda each: each[1])
    return file, source_row - start + 1


@functools.lru_cache(maxsize=32)
def _file_starts(description: str) -> list[tuple[str, int]]:
    try:
        return [(file, start) for file, start in json.loads(description)["files"]]
    except (ValueError, KeyError, TypeError):  # not a data set of ours
        return []


def _load(source: Given, role: _Role, split: str) -> Dataset:
    found, unread = find_source(source, split), UnreadLabels(role.name)
    if _starts_with_id(found):
        try:
            return _write(Reading(role, found, use_ids=True, unread=unread))
        except _IdsUnusable:
            pass  # a later row has none, or the same one: begin again
    return _write(Reading(role, found, use_ids=False, unread=unread))


def streamed_negatives(source: Source, unread: UnreadLabels) -> Reading:
    """Negatives row by row, for what does not fit on a disk twice: the rows of `load_negatives`, but that a
    row's `id` is the source's wherever it has one, equal or not, since no list of all of them is kept."""
    return Reading(_NEGATIVES, source, use_ids=True, unique=False, unread=unread)


def _write(reading: Reading) -> Dataset:
    dataset = write_rows(reading.rows, reading.role.features, reading.fingerprint())
    dataset.info.description = json.dumps({"files": reading.starts})
    return dataset


class _IdsUnusable(Exception):  # noqa: N818 - a signal to begin again, not an error
    """A row has no id, or an id came twice."""


class Reading:
    """One pass over a source: yields canonical rows and notes where each file starts (`starts`).

    `use_ids`: an `id` that is usable is the row's; `unique`: all must be, and no two equal. `unread`: what
    has told of unread labels before.
    """

    def __init__(
        self,
        role: _Role,
        source: Source,
        *,
        use_ids: bool,
        unique: bool = True,
        unread: UnreadLabels,
    ) -> None:
        self.role, self.source, self.use_ids, self.unique = role, source, use_ids, unique
        self.starts: list[tuple[str, int]] = []
        self.unread = unread

    def rows(self) -> Iterator[dict[str, Any]]:
        """Canonical rows. Raises `UserError` at a broken row, or at the end when there were none."""
        used = self.role.used | {"id"} if self.use_ids else self.role.used
        ids: set[str] = set()
        row, empty = 0, True
        for start, raw in self._raw_rows():
            empty = False
            for item in self.role.convert(raw.values, raw.where):
                refuse_endless(item, raw.where)
                label = self._label(raw, row, ids)
                extra = formats.extra_of(raw.values, used, raw.where)
                yield {"row": row, "id": label, "source_row": start + raw.position, **item, "extra": extra}
                row += 1
        if row == 0:
            raise UserError(f"{self.source.name}: {'it is empty, no rows' if empty else self.role.nothing}")

    def _label(self, raw: Row, row: int, ids: set[str]) -> str:
        if not self.use_ids:
            return str(row)
        if self.unique:
            return _new_id(raw, ids)
        try:
            return _new_id(raw, set())
        except _IdsUnusable:
            return str(row)

    def _raw_rows(self) -> Iterator[tuple[int, Row]]:
        """Rows, each with the number of rows of the files before its own."""
        file, labelled = -1, None
        for start, raw in numbered_rows(self.source, self.starts):
            refuse_impact_table(raw)
            if self.role in (_NEGATIVES, _RETAIN):
                labelled = labelled_alike(labelled if start == file else None, raw)
                if labelled is False:
                    self.unread.look(self.starts[-1][0], raw)
            file = start
            yield start, raw

    def fingerprint(self) -> str:
        """Changes with the role, the files, their sizes and times of change."""
        stats = [(file.path, file.path.stat()) for file in self.source.files]
        files = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        hub = None if self.source.hub is None else self.source.hub._fingerprint
        facts = json.dumps([self.role.name, self.use_ids, files, hub])
        return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()


def _starts_with_id(source: Source) -> bool:
    """Whether the first row has an `id`: most sources have none, and this spares them a second pass."""
    for _, rows in tables(source):
        first = next(rows, None)
        if first is not None:
            return "id" in first.values
    return False


def _new_id(raw: Row, ids: set[str]) -> str:
    value = raw.values.get("id")
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise _IdsUnusable
    label = str(value)
    half_pair = any("\ud800" <= character <= "\udfff" for character in label)
    if not label or label in ids or half_pair:
        raise _IdsUnusable
    ids.add(label)
    return label
