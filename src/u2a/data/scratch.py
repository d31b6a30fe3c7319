"""The process's private temporary folder, and the Arrow files that rows are written to in it.

The folder is readable by its user alone and goes when the process ends, so no copy of private text stays
behind and no changed file is served stale. `TMPDIR` chooses the disk.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features
from datasets.exceptions import DatasetGenerationError

from u2a.types import UserError

_ROWS_IN_MEMORY = 200
"""Rows held while writing: few, because one row may be megabytes long."""


def new_folder() -> Path:
    """An empty temporary folder, removed when the process ends."""
    return Path(tempfile.mkdtemp(dir=_workspace(os.getpid())))


def write_rows(rows: Callable[[], Iterator[dict[str, Any]]], features: Features, fingerprint: str) -> Dataset:
    """The rows as a memory-mapped data set; what `rows` raises comes out unwrapped.

    Raises:
        UserError: there is no room for them.
    """
    folder = new_folder()
    try:
        with no_progress_bars():
            return Dataset.from_generator(
                rows,
                features=features,
                cache_dir=str(folder),
                fingerprint=fingerprint,
                writer_batch_size=_ROWS_IN_MEMORY,
            )
    except DatasetGenerationError as fault:
        shutil.rmtree(folder, ignore_errors=True)
        cause = fault.__cause__ or fault
        if isinstance(cause, OSError):
            raise UserError(
                f"rows cannot be written to {folder} ({cause}); set TMPDIR to a folder with room"
            ) from cause
        raise cause from cause.__cause__


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence `datasets`' progress bars inside the block."""
    if datasets.utils.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@functools.cache
def _workspace(process: int) -> str:
    folder = tempfile.mkdtemp(prefix="u2a-rows-")

    def remove() -> None:
        if os.getpid() == process:  # a forked child must not take the rows from its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
