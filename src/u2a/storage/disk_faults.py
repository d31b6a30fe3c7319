"""When the disk does not take what is written: what happened, where, how much is free, how to go on."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

_WHAT = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this system or `ulimit -f` allows",
    errno.EACCES: "no permission there",
    errno.EPERM: "no permission there",
    errno.EROFS: "the disk is read-only",
    errno.EIO: "the disk or its connection is broken",
    errno.ESTALE: "the network disk is gone",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENOENT: "the folder is gone, or cannot be made",
    errno.ENAMETOOLONG: "the name is too long",
}
_READING = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""Faults that reading meets as well as writing."""
_INSIDE = (errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG)
"""Faults of storage only where something is to be written; elsewhere they are some missing file."""


def storage_errno(error: BaseException | None) -> int | None:
    """The system's number of what went wrong with the disk, None if it was something else.

    Some writers are no Python: safetensors and pyarrow tell the number in their message alone.
    """
    for each in _with_causes(error):
        number = each.errno if isinstance(each, OSError) else None
        if number is None and (found := re.search(r"(?:os error|errno) (\d+)", str(each), flags=re.I)):
            number = int(found[1])
        if number in _WHAT:
            return number
    return None


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause, that one's cause, ...; each once, since causes may form a ring."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__


def storage_message(error: BaseException, output: Path | None) -> str | None:
    """What to tell people, None where `error` is not the disk's.

    Args:
        output: folder that the command writes to.
    """
    number = storage_errno(error)
    if number is None:
        return None
    named = _file_of(error)
    inside = output is not None and (named is None or output.absolute() in (named, *named.parents))
    if number in _INSIDE and not inside:
        return None
    path = named or (output.absolute() if output else None)
    if path is None:
        return f"{_WHAT[number]} ({os.strerror(number)})"
    why = f"{path}: {_WHAT[number]} ({os.strerror(number)})"
    if number in _READING and not inside:  # a file of the user's, say, that cannot be read
        return f"could not use {why}"
    return f"could not write {why}{_free(path)}"


def _file_of(error: BaseException | None) -> Path | None:
    for each in _with_causes(error):
        name = getattr(each, "filename", None)
        if isinstance(name, (str, bytes)):
            return Path(os.fsdecode(name)).absolute()
    return None


def _free(path: Path) -> str:
    """`; 12 MiB are free there`, of the first folder of the path that exists."""
    for folder in path.parents:
        try:
            free = shutil.disk_usage(folder).free
        except OSError:
            continue
        return f"; {free / 2**20:.0f} MiB are free there"
    return ""


def quiet_when_full(handler: logging.Handler) -> logging.Handler:
    """A log handler that says once that its file takes no more, in place of a traceback for each line."""

    def handle(record: logging.LogRecord) -> None:
        del record
        error = sys.exc_info()[1]
        if error is not None and not told:
            told.append(True)
            why = storage_message(error, None) or error
            print(f"u2a: the log goes on without its file: {why}", file=sys.stderr)

    told: list[bool] = []
    handler.handleError = handle  # type: ignore[method-assign]
    return handler
