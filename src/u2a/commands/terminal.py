"""The terminal: progress bars with the time left, tables, messages; plain text where there is none.

How much is said is decided here, once for all commands: everything, or with `--quiet` what is essential. With
`--json` standard output holds one object and nothing else; what is meant for people goes to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from u2a import processes
from u2a.printable import printable, printable_lines

if TYPE_CHECKING:
    from u2a.passes.dataset import Progress as Advance

__all__ = [
    "Bars",
    "give",
    "manners",
    "print_beside",
    "print_json",
    "print_table",
    "printable",
    "say",
    "shown_log",
    "terminal_width",
]


class _Console(Console):
    """What is printed where nobody reads any more (`u2a … | head -1`) goes nowhere: the command ends as it
    would have ended, with its files and its own status."""

    def on_broken_pipe(self) -> None:
        """In the place of rich's, which ends the program."""
        _discard(self.file)


def _discard(stream: IO[str]) -> None:
    """Has a stream write to nowhere: also what it still holds, which Python writes when it ends."""
    with suppress(OSError, ValueError):  # a stream without a descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


errors = _Console(stderr=True, highlight=False)


@dataclass
class _Manners:
    """How a command speaks: `results` are those that `give` has collected for `--json`."""

    quiet: bool = False
    json: bool = False
    console: Console = field(default_factory=lambda: _Console(highlight=False))
    results: dict[str, Any] = field(default_factory=dict)


_now = _Manners()


@contextmanager
def manners(*, quiet: bool = False, json: bool = False) -> Iterator[dict[str, Any]]:
    """Within, commands speak as `--quiet` and `--json` ask for; gives the results, which fill up.

    Characters that a terminal does not have (`PYTHONIOENCODING=latin-1`) become question marks.
    """
    global _now
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    before, _now = _now, _Manners(quiet, json, errors if json else _Console(highlight=False))
    with ExitStack() as stack:
        if quiet:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        if json:  # whatever any library prints
            stack.enter_context(redirect_stdout(sys.stderr))
        try:
            yield _now.results
        finally:
            _now = before


def give(**results: Any) -> None:
    """Results of the command for `--json`: plain values and paths, no text of rows but where rows are asked
    for."""
    _now.results.update(results)


def print_json(document: Mapping[str, Any]) -> None:
    """One object on standard output, in ASCII: no text in it can act on the terminal."""
    try:
        print(json.dumps(document, indent=2, allow_nan=False).replace("\x7f", "\\u007f"), flush=True)
    except BrokenPipeError:
        _discard(sys.stdout)


def say(text: str, *, essential: bool = False) -> None:
    """Words for people; row text in them is shown, never interpreted. Wrapped only by the terminal.

    Args:
        essential: said with `--quiet` too: the line that sums up, or without which nobody could go on.
    """
    if processes.is_main() and (essential or not _now.quiet):
        _now.console.print(Text(printable_lines(text)), soft_wrap=True)


class _Log(logging.Handler):
    """The library's log as lines for people; with `--quiet` errors alone."""

    def emit(self, record: logging.LogRecord) -> None:
        if not processes.is_main() or (_now.quiet and record.levelno < logging.ERROR):
            return
        mark = "Warning: " if record.levelno >= logging.WARNING else ""
        errors.print(Text(printable_lines(mark + record.getMessage())), soft_wrap=True)


@contextmanager
def shown_log() -> Iterator[None]:
    """Within, the library's log also goes to the terminal."""
    logger, handler = logging.getLogger("u2a"), _Log()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class Bars:
    """Progress bars for a command. Use as a context manager; `task` is what the library calls."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=_now.quiet or not errors.is_terminal or not processes.is_main(),
        )

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        """Shows one piece of work until the block ends; None = nobody knows how much it is."""
        shown = self.progress.add_task(printable(name), total=total)
        try:
            yield lambda done: self.progress.advance(shown, done)
        finally:
            self.progress.remove_task(shown)


def print_beside(texts: Mapping[str, str]) -> None:
    """Texts side by side, each under its name; shown with `--quiet` too."""
    table = Table(expand=True)
    for name in texts:
        table.add_column(Text(printable_lines(name)), ratio=1, overflow="fold")
    table.add_row(*(Text(printable_lines(text)) for text in texts.values()))
    _now.console.print(table)


def terminal_width() -> int:
    """Characters of a line; 80 where there is no terminal and COLUMNS says nothing."""
    return _now.console.width


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: first column left, others right."""
    if _now.quiet:
        return
    table = Table(title=Text(printable_lines(title)), title_justify="left")
    for number, name in enumerate(header):
        table.add_column(Text(printable_lines(name)), justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(Text(printable_lines(cell)) for cell in row))
    _now.console.print(table)
