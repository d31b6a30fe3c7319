"""One run at a time in a folder: the kernel's lock on `.lock`, free again when its process is gone."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from u2a.types import UserError

log = logging.getLogger("u2a")

NAME = ".lock"
PATIENCE = 5.0
"""Seconds that a run which shares its folder waits for another one to set the folder up."""


@dataclass
class RunLock:
    """A lock that is held until `release`, or until the process ends, however it ends."""

    path: Path
    handle: int
    shared: bool = False

    @classmethod
    def take(cls, folder: Path, *, shared: bool = False) -> RunLock | None:
        """Locks a folder that exists; `shared` = with others that share it. None where the file system has no
        locks.

        Raises:
            UserError: another run is at work in the folder; names its process.
        """
        path, begin = folder / NAME, time.monotonic()
        while True:
            if path.is_symlink():  # what is written would land in the file that it leads to
                raise UserError(f"{path}: the lock of a run is a link; remove it")
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                who = _holder(path)
                os.close(handle)
                if shared and time.monotonic() - begin < PATIENCE:
                    time.sleep(0.1)
                    continue
                raise UserError(
                    f"another run{who} is at work in {folder}: wait for it or end it, or name another "
                    "--output"
                ) from None
            except OSError as error:
                os.close(handle)
                log.warning("%s cannot be locked (%s): take care that no other run uses it", folder, error)
                return None
            if _same_file(handle, path):
                _write_holder(handle)
                return cls(path, handle, shared)
            os.close(handle)  # the other run has just removed its folder

    def share(self) -> None:
        """Lets others in that share the folder."""
        fcntl.flock(self.handle, fcntl.LOCK_SH)
        self.shared = True

    def alone(self) -> bool:
        """Whether the lock could be made exclusive: nobody else is in the folder. If so it is."""
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # the kernel may have given the shared lock up on the way
            fcntl.flock(self.handle, fcntl.LOCK_SH)
            return False
        self.shared = False
        return True

    def release(self) -> None:
        """Gives the folder free; the file stays, since others may wait for it."""
        os.close(self.handle)


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _write_holder(handle: int) -> None:
    with suppress(OSError):  # a courtesy to others, which a full disk does not take
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode(), 0)


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f" (process {int(found['pid'])} on {found['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
