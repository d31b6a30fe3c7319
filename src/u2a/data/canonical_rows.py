"""One pass over a source: its rows as canonical ones, each with its id, its place and its other columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from datasets import Features, Value

from u2a.data import formats
from u2a.data.labels import UnreadLabels, labelled_alike
from u2a.data.limits import refuse_endless
from u2a.data.own_tables import refuse_impact_table
from u2a.data.raw_rows import numbered_rows, tables
from u2a.data.reading import Row
from u2a.data.sources import Source
from u2a.types import UserError

_HEAD = {
    "row": Value("int64"),
    "id": Value("string"),
    "source_row": Value("int64"),
    "prompt": [{"role": Value("string"), "content": Value("string")}],
}


@dataclass(frozen=True)
class Role:
    """What a source is read for: its columns, the conversion of a row, the columns that uses up, what is said
    where nothing is found; `labelled`: whether a row's label says if it is one."""

    name: str
    columns: dict[str, Any]
    convert: Callable[[formats.Values, str], list[dict[str, Any]]]
    used: frozenset[str]
    nothing: str
    labelled: bool = False

    @property
    def features(self) -> Features:
        """All columns."""
        return Features({**_HEAD, **self.columns, "extra": Value("string")})


class Unreadable(NamedTuple):
    """A row that is in no format: its file, its number there from 1, and why."""

    file: str
    row: int
    message: str


class IdsUnusable(Exception):  # noqa: N818 - a signal to begin again, not an error
    """A row has no id, or an id came twice."""


class Reading:
    """Yields canonical rows and notes where each file starts (`starts`), and how many rows it has `given`.

    Args:
        use_ids: an `id` that is usable is the row's. unique: all must be, and no two equal.
        unread: what has told of unread labels before.
        unreadable: gets the rows that are in no format, which are left out then; None = the first ends it.
    """

    def __init__(
        self,
        role: Role,
        source: Source,
        unread: UnreadLabels,
        *,
        use_ids: bool,
        unique: bool = True,
        unreadable: list[Unreadable] | None = None,
    ) -> None:
        self.role, self.source, self.use_ids, self.unique = role, source, use_ids, unique
        self.unread, self.unreadable = unread, unreadable
        self.starts: list[tuple[str, int]] = []
        self.given, self._file = 0, -1
        self._labelled: bool | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Canonical rows.

        Raises:
            UserError: at a broken row, or at the end when there were none.
        """
        ids: set[str] = set()
        self.given, empty = 0, True
        for start, raw in numbered_rows(self.source, self.starts):
            empty = False
            for item in self._items(start, raw):
                row, label, extra = self.given, self._label(raw, self.given, ids), item.pop("extra")
                yield {"row": row, "id": label, "source_row": start + raw.position, **item, "extra": extra}
                self.given += 1
        if self.given == 0 and not self.unreadable:
            raise UserError(f"{self.source.name}: {'it is empty, no rows' if empty else self.role.nothing}")

    def _items(self, start: int, raw: Row) -> list[dict[str, Any]]:
        """What one row of the source gives, without its place."""
        try:
            return self._converted(start, raw)
        except UserError as fault:
            if self.unreadable is None:
                raise
            message = str(fault).removeprefix(f"{raw.where}:").strip()
            if self.unreadable and self.unreadable[-1].message == message:  # a million of them take no room
                message = self.unreadable[-1].message
            self.unreadable.append(Unreadable(self.starts[-1][0], raw.position + 1, message))
            return []

    def _converted(self, start: int, raw: Row) -> list[dict[str, Any]]:
        refuse_impact_table(raw)
        if self.role.labelled:
            self._labelled = labelled_alike(self._labelled if start == self._file else None, raw)
            self._file = start
            if self._labelled is False:
                self.unread.look(self.starts[-1][0], raw)
        try:
            items = self.role.convert(raw.values, raw.where)
        except formats.MissingColumnsError:
            nulls = [key for key in raw.nulls if key in formats.TEXT_KEYS - {"system", "input"}]
            raise formats.missing(raw.values, raw.where, self.role.name, nulls) from None
        used = self.role.used | {"id"} if self.use_ids else self.role.used
        for item in items:
            refuse_endless(item, raw.where)
            item["extra"] = formats.extra_of(raw.values, used, raw.where)
        return items

    def _label(self, raw: Row, row: int, ids: set[str]) -> str:
        if not self.use_ids:
            return str(row)
        if self.unique:
            return _new_id(raw, ids)
        try:
            return _new_id(raw, set())
        except IdsUnusable:
            return str(row)

    def fingerprint(self) -> str:
        """Changes with the role, the files, their sizes and times of change."""
        stats = [(file.path, file.path.stat()) for file in self.source.files]
        files = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        hub = None if self.source.hub is None else self.source.hub._fingerprint
        facts = json.dumps([self.role.name, self.use_ids, files, hub])
        return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()


def starts_with_id(source: Source) -> bool:
    """Whether the first row has an `id`: most sources have none, and this spares them a second pass."""
    for _, rows in tables(source):
        first = next(rows, None)
        if first is not None:
            return "id" in first.values
    return False


def _new_id(raw: Row, ids: set[str]) -> str:
    value = raw.values.get("id")
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise IdsUnusable
    label = str(value)
    half_pair = any("\ud800" <= character <= "\udfff" for character in label)
    if not label or label in ids or half_pair:
        raise IdsUnusable
    ids.add(label)
    return label
