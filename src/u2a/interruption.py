"""SIGINT and SIGTERM: the first one asks for a stop at the next place where everything is kept.

A command listens; what it runs calls `check` after each step that is saved. A second SIGINT stops at once.
Where nobody listens, in a library's use or outside the main thread, signals do what they always do.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from u2a import processes

_SAID = b"\nu2a: finishing the current step, then saving; Ctrl-C once more stops at once\n"


class Interrupted(Exception):  # noqa: N818 - a stop that was asked for
    """A signal asked for a stop, and all that was done is kept. Exit status 3; `--resume` goes on."""


class _Asked:
    """Whether a signal has asked for a stop."""

    by: int = 0


@contextmanager
def listening(*, quiet: bool = False) -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM only asks; `quiet` = without a word on standard error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        if _Asked.by and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not _Asked.by and not quiet and processes.is_main():
            os.write(2, _SAID)
        _Asked.by = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _Asked.by = 0
        for number, handler in before.items():
            signal.signal(number, handler)


def asked() -> bool:
    """Whether a signal has asked this process for a stop."""
    return bool(_Asked.by)


def check() -> None:
    """Call it where everything done so far is kept; of several processes, in all at the same place.

    Raises:
        Interrupted: a signal has asked for a stop, one of them at least.
    """
    if processes.any_of(asked()):
        raise Interrupted
