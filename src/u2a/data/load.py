"""From a file, folder, Hub data set or standard input to canonical rows, memory-mapped through `datasets`.

A source is a path to a jsonl, json, csv, parquet, arrow or txt file, a folder of such files (read in the
order of their names; sub-folders, hidden files and other endings are left out; of a folder that `datasets`
saved its arrow files), `-` for jsonl on standard input, or a Hub id `org/name` where no such path exists;
from Python also rows (an iterable of mappings of columns), a `datasets.Dataset` or a table of pandas. The
same rows give the same data set, whatever the format.

Columns of every result: `row` int64 (position in the result, 0..N-1), `id` str (the source's `id` where every
row has one and no two are equal, else str(row)), `source_row` int64 (0-based position in the source, over all
its files; `locate` turns it into file and row), `prompt` list of {role, content}, and last `extra` str: the
other columns that are not null, as one json object. Columns that hold texts of another format (`chosen`
beside a negative, say) are not kept.

The rows lie in the process's temporary folder (`u2a.data.scratch`); nothing is kept between runs.
"""

from __future__ import annotations

import functools
import json

from datasets import Dataset, Value

from u2a.data import formats
from u2a.data.canonical_rows import IdsUnusable, Reading, Role, Unreadable, starts_with_id
from u2a.data.labels import UnreadLabels
from u2a.data.scratch import write_rows
from u2a.data.sources import GIVEN, Given, Source, find_source
from u2a.types import UserError

_TEXT = Value("string")
_LABELS = frozenset((*formats.LABEL_KEYS, "is_response_0_safe", "is_response_1_safe"))

_NEGATIVES = Role(
    "negatives",
    {"response": _TEXT, "weight": Value("float64")},
    formats.negatives_of,
    _LABELS | {"weight"},
    "there are no negatives among its rows: every one is labelled good",
    labelled=True,
)
_PREFERENCES = Role(
    "preferences",
    {"chosen": _TEXT, "rejected": _TEXT},
    formats.preferences_of,
    frozenset({"safer_response_id"}),
    "there are no pairs",
)
_RETAIN = Role(
    "retain",
    {"response": _TEXT},
    formats.retain_of,
    _LABELS,
    "there are no good texts among its rows: every one is labelled bad",
    labelled=True,
)
_PROMPTS = Role("prompts", {}, formats.prompts_of, frozenset(), "there are no prompts")
_ROLES = {role.name: role for role in (_NEGATIVES, _PREFERENCES, _RETAIN, _PROMPTS)}
FEATURES = {name: role.features for name, role in _ROLES.items()}
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


def source_of(dataset: Dataset) -> str:
    """The file that a data set was loaded from, or the first and how many more; "" of rows without one."""
    files = [file for file, _ in _file_starts(dataset.info.description) if file not in ("", GIVEN)]
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    return f"{files[0]}{more}" if files else ""


@functools.lru_cache(maxsize=32)
def _file_starts(description: str) -> list[tuple[str, int]]:
    try:
        return [(file, start) for file, start in json.loads(description)["files"]]
    except (ValueError, KeyError, TypeError):  # not a data set of ours
        return []


def load_readable(role: str, source: Given, unreadable: list[Unreadable]) -> Dataset:
    """What the loader of that role gives, without the rows that are in no format: `unreadable` gets those.

    Args:
        role: a key of `FEATURES`. unreadable: is emptied first.

    Raises:
        UserError: as the loader, but for such rows.
    """
    return _load(source, _ROLES[role], "train", unreadable)


def as_loaded(role: str, given: Given, name: str) -> Dataset:
    """Rows of a loader as they are, anything else as the loader of that role reads it.

    Args:
        role: a key of `FEATURES`. name: of the argument, for messages.

    Raises:
        UserError: it is a data set that this loader has not made; as the loader.
    """
    if not isinstance(given, Dataset):
        return _load(given, _ROLES[role], "train")
    wanted = ["prompt", *(column for column in _ROLES[role].columns if column != "weight")]
    lacking = [column for column in wanted if column not in given.column_names]
    if lacking or isinstance(given.features["prompt"], Value):
        what = f"have no column `{lacking[0]}`" if lacking else "have text as `prompt`, not messages"
        raise UserError(f"{name}: the rows {what}; read them with `load_{role}`")
    return given


def _load(source: Given, role: Role, split: str, unreadable: list[Unreadable] | None = None) -> Dataset:
    found, unread = find_source(source, split), UnreadLabels(role.name)

    def read(use_ids: bool) -> Dataset:
        if unreadable is not None:
            unreadable.clear()
        return _write(Reading(role, found, unread, use_ids=use_ids, unreadable=unreadable))

    if starts_with_id(found):
        try:
            return read(use_ids=True)
        except IdsUnusable:
            pass  # a later row has none, or the same one: begin again
    return read(use_ids=False)


def streamed_negatives(source: Source, unread: UnreadLabels) -> Reading:
    """Negatives row by row, for what does not fit on a disk twice: the rows of `load_negatives`, but that a
    row's `id` is the source's wherever it has one, equal or not, since no list of all of them is kept."""
    return Reading(_NEGATIVES, source, unread, use_ids=True, unique=False)


def _write(reading: Reading) -> Dataset:
    features = reading.role.features
    try:
        dataset = write_rows(reading.rows, features, reading.fingerprint())
    except ValueError:  # `datasets` makes none of no rows: not one of them could be read, and each is told
        if not reading.unreadable or reading.given:
            raise
        dataset = Dataset.from_dict({name: [] for name in features}, features=features)
    dataset.info.description = json.dumps({"files": reading.starts})
    return dataset
