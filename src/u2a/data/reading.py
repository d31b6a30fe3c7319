"""Files to raw rows: jsonl, json, csv, parquet, arrow, txt, one at a time, every fault located in its file.

Nothing here knows what a row means (`u2a.data.formats` does). No reader holds a whole file: json arrays are
decoded object by object, parquet and Arrow batch by batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from u2a.data import limits
from u2a.data.arrow_rows import arrow_rows
from u2a.data.csv_rows import csv_rows
from u2a.data.limits import lines, too_long
from u2a.data.parquet import parquet_rows
from u2a.types import UserError

CHUNK = 1 << 20
"""Characters of a json file read at once; a row longer than that makes the window grow."""


class Row(NamedTuple):
    """One row as the file has it: 0-based `position` in the file, `where` for messages, values not null, and
    the columns that are null."""

    position: int
    where: str
    values: dict[str, Any]
    nulls: tuple[str, ...] = ()

    @classmethod
    def of(cls, position: int, where: str, values: dict[str, Any]) -> Row:
        """The row of all its values."""
        kept = {key: value for key, value in values.items() if value is not None}
        nulls = tuple(key for key in values if key not in kept) if len(kept) < len(values) else ()
        return cls(position, where, kept, nulls)


@dataclass(frozen=True)
class DataFile:
    """One readable file: its path, the name the user knows it by, and its kind (a key of `READERS`)."""

    path: Path
    name: str
    kind: str


def read_file(file: DataFile) -> Iterator[Row]:
    """The rows of one file, in order.

    The position is the line number less one for jsonl and txt (blank lines are skipped but counted, so that a
    message leads to the line in an editor) and the number of the record less one for the other kinds.

    Raises:
        UserError: a broken file, text that is not UTF-8, a row that is no object, an unreadable file; each
            with the file and the line or row.
    """
    try:
        for position, where, values in READERS[file.kind](file):
            if not isinstance(values, dict):
                raise UserError(f"{where}: the row is {type_name(values)}, not an object with named columns")
            yield Row.of(position, where, values)
    except UnicodeDecodeError as fault:
        raise UserError(f"{_bad_line(file)}: not UTF-8 text; save the file as UTF-8") from fault
    except OSError as fault:
        raise UserError(f"{file.name}: cannot be read ({fault.strerror or fault})") from fault


def type_name(value: object) -> str:
    """What a json value is, in words for a message; never its content."""
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, (int, float)):
        return "a number"
    names: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def decode_json(text: str, where: str) -> Any:
    """`json.loads` with faults as `UserError` that start with `where` and show no content."""
    with _json_faults(where):
        return json.loads(text)


@contextmanager
def _json_faults(where: str) -> Iterator[None]:
    try:
        yield
    except RecursionError as fault:
        raise UserError(f"{where}: the json is nested too deeply to be read") from fault
    except json.JSONDecodeError as fault:
        raise UserError(f"{where}: not valid json ({fault.msg}, character {fault.colno})") from fault
    except ValueError as fault:  # Python refuses integers of more than 4,300 digits
        raise UserError(f"{where}: not valid json (a number is too long)") from fault


def _bad_line(file: DataFile) -> str:
    """Where the first line stands that is not UTF-8 (a newline byte is never inside a UTF-8 character)."""
    if file.kind not in ("parquet", "arrow"):
        for number, line in enumerate(_lines(file.path, file.name), start=1):
            if not _is_utf8(line):
                return f"{file.name}, line {number}"
    return file.name


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _lines(path: Path, name: str) -> Iterator[bytes]:
    """Lines without their end, split at newline bytes only: U+2028 and the like are part of the text."""
    with path.open("rb") as stream:
        for number, line in enumerate(lines(stream, name)):
            yield (line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line).rstrip(b"\r\n")


def _read_jsonl(file: DataFile) -> Iterator[tuple[int, str, Any]]:
    for position, line in enumerate(_lines(file.path, file.name)):
        if line.strip():
            where = f"{file.name}, line {position + 1}"
            yield position, where, decode_json(line.decode("utf-8"), where)


def _read_txt(file: DataFile) -> Iterator[tuple[int, str, Any]]:
    for position, line in enumerate(_lines(file.path, file.name)):
        if line.strip():
            yield position, f"{file.name}, line {position + 1}", {"text": line.decode("utf-8")}


def _read_json(file: DataFile) -> Iterator[tuple[int, str, Any]]:
    """An array of objects, or objects one after the other (jsonl under another name, or a single row)."""
    with file.path.open(encoding="utf-8-sig", newline="") as stream:
        window = _JsonWindow(stream, file.name)
        array = window.peek() == "["
        if array:
            window.skip()
        position = 0
        while window.peek() not in ("", "]"):
            where = f"{file.name}, row {position + 1} (line {window.line})"
            yield position, where, window.value(where)
            position += 1
            if array and window.peek() != "]":
                window.expect(",", f"after row {position}")
                if window.peek() == "]":
                    raise UserError(f"{file.name}, line {window.line}: not valid json (a comma before `]`)")
        if array:
            window.expect("]", "at the end of the array")
        if window.peek():
            raise UserError(f"{file.name}, line {window.line}: not valid json (text after the last row)")


class _JsonWindow:
    """A moving piece of a json file: `peek` at the next character, decode one `value`, count lines."""

    def __init__(self, stream: IO[str], name: str) -> None:
        self.stream, self.name = stream, name
        self.text, self.at, self.line, self.ended = "", 0, 1, False
        self.decoder = json.JSONDecoder()

    def _more(self) -> None:
        rest = self.text[self.at :]
        if len(rest) > limits.LONGEST_ROW:
            raise too_long(f"{self.name}, line {self.line}: the row that begins here")
        # reading as much again as is held keeps the retries of one long row linear in its length
        chunk = self.stream.read(min(max(CHUNK, len(rest)), limits.LONGEST_ROW))
        self.text, self.at, self.ended = rest + chunk, 0, not chunk

    def peek(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            while self.at < len(self.text):
                character = self.text[self.at]
                if character not in " \t\r\n":
                    return character
                self.line += character == "\n"
                self.at += 1
            if self.ended:
                return ""
            self._more()

    def skip(self) -> None:
        """Step over the character that `peek` showed."""
        self.at += 1

    def expect(self, character: str, place: str) -> None:
        """Step over `character`, or raise `UserError` when something else is next."""
        if self.peek() != character:
            raise UserError(f"{self.name}, line {self.line}: not valid json (no `{character}` {place})")
        self.skip()

    def value(self, where: str) -> Any:
        """Decode the object that starts here and step over it."""
        if self.peek() != "{":
            raise UserError(f"{where}: the row is not an object with named columns")
        while (found := self._decode(where)) is None:
            self._more()
        value, end = found
        if end - self.at > limits.LONGEST_ROW:
            raise too_long(f"{where}: the row")
        self.line += self.text.count("\n", self.at, end)
        self.at = end
        return value

    def _decode(self, where: str) -> tuple[Any, int] | None:
        """The object at the window's position and where it ends; None when the window may cut it off."""
        with _json_faults(where):
            try:
                return self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as fault:
                # a fault within a few characters of the window's end may only be the cut
                cut = fault.msg.startswith("Unterminated string") or fault.pos >= len(self.text) - 12
                if cut and not self.ended:
                    return None
                line = self.line + self.text.count("\n", self.at, fault.pos)
                raise UserError(f"{where}: not valid json ({fault.msg}, at line {line})") from fault


def _read_csv(file: DataFile) -> Iterator[tuple[int, str, Any]]:
    return csv_rows(file.path, file.name)


def _read_parquet(file: DataFile) -> Iterator[tuple[int, str, Any]]:
    return parquet_rows(file.path, file.name)


def _read_arrow(file: DataFile) -> Iterator[tuple[int, str, Any]]:
    return arrow_rows(file.path, file.name)


READERS = {
    "jsonl": _read_jsonl,
    "ndjson": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "txt": _read_txt,
}
