"""Rows of a csv file, each cell as the value json would hold."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from u2a.data import limits
from u2a.data.limits import lines, too_long
from u2a.types import UserError

FIELD_LIMIT = 2**31 - 1
"""Python's own limit of 131,072 characters a cell would refuse long answers."""
_ANSWERS = frozenset({"prompt", "completion", "response", "chosen", "rejected"})
TEXT_KEYS = _ANSWERS | {"text", "instruction", "input", "output", "response_0", "response_1"}
"""Columns whose empty cell is an empty text; an empty cell of any other column is a missing value."""
MESSAGE_KEYS = _ANSWERS | {"messages", "conversations"}
"""Columns whose cell may hold a json list of messages."""
FLAG_KEYS = frozenset({"label", "kto_tag", "is_safe", "is_response_0_safe", "is_response_1_safe"})
FLAG_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""What stands for true and false, in small letters; pandas writes 1.0 where a column has gaps."""


def csv_rows(path: Path, name: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Position, place and values of each record.

    Raises:
        UserError: it is no csv, a row has another number of cells than the header, or is too long.
    """
    limit = csv.field_size_limit(FIELD_LIMIT)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            taken = _CsvLines(lines(stream, name))
            yield from _records(csv.reader(taken, strict=True), taken, name)
    finally:
        csv.field_size_limit(limit)


class _CsvLines:
    """Lines for a csv reader; `held` characters of them belong to the row that it is at."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines, self.held = lines, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.held += len(line)
        if self.held > limits.LONGEST_ROW:  # a quote that is never closed
            raise OverflowError
        return line


def _records(reader: Any, taken: _CsvLines, name: str) -> Iterator[tuple[int, str, Any]]:
    position = 0
    header: list[str] | None = None
    while True:
        where = f"{name}, row {position + 1} (line {reader.line_num + 1})" if header else f"{name}, line 1"
        taken.held = 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except OverflowError:
            raise too_long(f"{where}: the row") from None
        except csv.Error as fault:
            raise UserError(f"{where}: not valid csv ({fault})") from fault
        if not cells:
            continue
        if header is None:
            header = cells
            twice = sorted({key for key in header if header.count(key) > 1})
            if twice:
                raise UserError(
                    f"{name}, line 1: the column `{ascii(twice[0][:40])[1:-1]}` stands in the header twice"
                )
            continue
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} cells where the header has {len(header)} columns")
        yield position, where, {key: _cell(key, cell) for key, cell in zip(header, cells, strict=True)}
        position += 1


def _cell(key: str, cell: str) -> Any:
    """A csv cell as the value json would hold; what cannot be turned stays text, for the format to refuse."""
    if not cell and key not in TEXT_KEYS:
        return None
    if key in MESSAGE_KEYS and cell.lstrip().startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        return value if value and isinstance(value, list) and isinstance(value[0], dict) else cell
    if key in FLAG_KEYS:
        return FLAG_WORDS.get(cell.strip().lower(), cell)
    try:
        if key == "weight":
            return float(cell)
        if key == "safer_response_id":
            return int(cell)
    except ValueError:
        pass
    return cell
