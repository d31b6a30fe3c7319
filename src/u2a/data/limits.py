"""How much one row may hold and how far a file may expand: hostile files must not eat the memory or the disk.

Both limits are far beyond honest data. Who needs more cuts the row, or writes the file as jsonl, which takes
as much room as it holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO, Any, AnyStr

from u2a.types import UserError

LONGEST_ROW = 1 << 26
"""Bytes (characters in json and csv) of one row or line with all its columns."""
LONGEST_TEXT = 1 << 22
"""Characters of prompt and answers of a row together: a tokenizer takes about 300 bytes for each."""
EXPANSION = 200
"""What a compressed file holds, over its own size."""
EXPANDED_LEAST = 1 << 30
"""Bytes that any file may expand to."""
VALUE_BYTES = 64
"""What a value is counted with beside its text: rows of nothing fill a disk too."""


def lines(stream: IO[AnyStr], name: str) -> Iterator[AnyStr]:
    """Lines with their ends, read so that no line without an end fills the memory (a sparse file has room for
    terabytes of it).

    Raises:
        UserError: a line is longer than `LONGEST_ROW`.
    """
    number = 0
    while line := stream.readline(LONGEST_ROW + 1):
        number += 1
        if len(line) > LONGEST_ROW:
            raise too_long(f"{name}, line {number}: the line")
        yield line


def too_long(what: str) -> UserError:
    """The error of a row, or a line, over `LONGEST_ROW`."""
    return UserError(f"{what} is longer than {LONGEST_ROW:,} bytes; cut it, or remove columns")


def refuse_endless(values: Mapping[str, Any], where: str) -> None:
    """Looks at the texts of a canonical row: `prompt` and answers.

    Raises:
        UserError: together they are longer than `LONGEST_TEXT`.
    """
    count = sum(len(turn["content"]) for turn in values["prompt"])
    count += sum(len(text) for text in values.values() if isinstance(text, str))
    if count > LONGEST_TEXT:
        raise UserError(
            f"{where}: prompt and answer have {count:,} characters, more than {LONGEST_TEXT:,}; cut them"
        )


def size_of(value: Any) -> int:
    """Bytes of a value as rows count it: its texts, and `VALUE_BYTES` for each value."""
    if isinstance(value, (str, bytes)):
        return VALUE_BYTES + len(value)
    if isinstance(value, dict):
        return VALUE_BYTES + sum(map(size_of, value.values()))
    if isinstance(value, list):
        return VALUE_BYTES + sum(map(size_of, value))
    return VALUE_BYTES


class Expansion:
    """Counts what a compressed file of `size` bytes has given so far."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.most, self.found = name, max(EXPANDED_LEAST, EXPANSION * size), 0

    def add(self, count: int, where: str) -> None:
        """Adds bytes. Raises `UserError` when the file has given too many."""
        self.found += count
        if self.found > self.most:
            raise UserError(
                f"{where}: the file expands to more than {self.most:,} bytes; if that is meant, write it "
                "as jsonl"
            )
