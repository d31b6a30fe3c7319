"""The terminal: progress bars with the time left, tables, messages; plain text where there is none."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
from u2a.logprobs import Progress as Advance
from u2a.printable import printable, printable_lines

__all__ = ["Bars", "print_table", "printable", "say", "shown_log"]

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Words for people; row text in them is shown, never interpreted. Wrapped only by the terminal."""
    if not processes.is_main():
        return
    console.print(Text(printable_lines(text)), soft_wrap=True)


class _Log(logging.Handler):
    """The library's log as lines for people."""

    def emit(self, record: logging.LogRecord) -> None:
        if not processes.is_main():
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
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal or not processes.is_main(),
        )

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        """Shows one piece of work until the block ends; None = nobody knows how much it is."""
        shown = self.progress.add_task(name, total=total)
        try:
            yield lambda done: self.progress.advance(shown, done)
        finally:
            self.progress.remove_task(shown)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: first column left, others right."""
    table = Table(title=Text(printable_lines(title)), title_justify="left")
    for number, name in enumerate(header):
        table.add_column(Text(printable_lines(name)), justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(Text(printable_lines(cell)) for cell in row))
    console.print(table)
