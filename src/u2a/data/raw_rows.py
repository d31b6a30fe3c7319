"""The user's own rows, every column as it came, to be written again without some of them.

They are copied once, a line of JSON each, into the process's temporary folder, with the place of each: to
write them again without a few is then a copy of bytes, whatever the source was.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from datasets import Dataset

from u2a.data.reading import Row, read_file
from u2a.data.scratch import new_folder
from u2a.data.sources import Source, find_source
from u2a.storage.files import whole_file

_CHUNK = 1 << 20


def numbered_rows(source: Source, starts: list[tuple[str, int]]) -> Iterator[tuple[int, Row]]:
    """Rows of every file, each with the number of rows of the files before its own: `source_row` is that and
    the row's position. `starts` gets each file's name and that number.

    Raises:
        UserError: as `read_file`.
    """
    start = 0
    for name, rows in tables(source):
        starts.append((name, start))
        last = -1
        for raw in rows:
            last = raw.position
            yield start, raw
        start += last + 1


def tables(source: Source) -> Iterator[tuple[str, Iterator[Row]]]:
    """Every file's name and rows."""
    if source.hub is not None:
        yield source.name, _hub_rows(source.hub, source.name)
    for file in source.files:
        yield file.name, read_file(file)


def _hub_rows(table: Dataset, name: str) -> Iterator[Row]:
    for position, values in enumerate(table):
        yield Row.of(position, f"{name}, row {position + 1}", values)


@dataclass(frozen=True)
class RawRows:
    """The copy in `path`; `source_rows` (ascending) and `ends`, in bytes, of its lines; a `digest` of all."""

    path: Path
    source_rows: array[int]
    ends: array[int]
    digest: str

    @classmethod
    def read(cls, source: str | Path, *, split: str = "train") -> RawRows:
        """Copies a source that can be read twice: anything but standard input.

        Raises:
            UserError: as `find_source` and `read_file`.
        """
        path = new_folder() / "rows.jsonl"
        source_rows, ends, digest = array("q"), array("q"), hashlib.sha256()
        with path.open("wb") as out:
            for start, raw in numbered_rows(find_source(source, split), []):
                line = json_line(raw.values)
                out.write(line)
                digest.update(line)
                source_rows.append(start + raw.position)
                ends.append(out.tell())
        return cls(path, source_rows, ends, digest.hexdigest()[:16])

    def write(self, path: Path, instead: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
        """Writes the rows in order as jsonl, whole. Null values are not among them: they mean nothing.

        Args:
            instead: by `source_row`, the rows that take its place; none = it is left out.
        """
        with whole_file(path) as temporary, self.path.open("rb") as rows, temporary.open("wb") as out:
            begin = 0
            for source_row in sorted(instead):
                line = bisect_left(self.source_rows, source_row)
                _copy(rows, out, begin, self.ends[line - 1] if line else 0)
                out.writelines(json_line(row) for row in instead[source_row])
                begin = self.ends[line]
            _copy(rows, out, begin, self.ends[-1] if self.ends else 0)


def json_line(values: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON in UTF-8; what no JSON has, such as a date, as text."""
    text = json.dumps(values, ensure_ascii=False, default=str)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:  # half a surrogate pair in a column that is none of ours
        return f"{json.dumps(values, default=str)}\n".encode()


def _copy(source: IO[bytes], target: IO[bytes], begin: int, end: int) -> None:
    source.seek(begin)
    while begin < end:
        part = source.read(min(_CHUNK, end - begin))
        target.write(part)
        begin += len(part)
