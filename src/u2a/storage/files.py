"""Files written whole: a temporary one beside the target, forced to the disk, then renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from u2a.storage.disk_faults import storage_errno

PART = ".part"
"""How temporary names end; they begin with a dot."""
DAMAGED = ".damaged"
"""How the name of a file ends that was found damaged and made again."""
_BEFORE = f"-before{PART}"
"""How the name of a folder ends that is being replaced."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}{PART}"
    # not readable by more people than the umask allows: it may hold text of rows
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        yield temporary
        force(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
        force(path.parent)
    except Exception as error:
        if (named := _named(error, path)) is None:
            raise
        raise named from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """As `whole_file` for a folder; one that is there stays until the new one is whole, and is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}{PART}"
    temporary.mkdir()
    before = temporary.with_name(f"{temporary.name.removesuffix(PART)}{_BEFORE}")
    try:
        yield temporary
        for each in (*temporary.rglob("*"), temporary):
            force(each)
        if path.exists():
            path.rename(before)
        temporary.rename(path)
        force(path.parent)
    except Exception as error:
        if (named := _named(error, path)) is None:
            raise
        raise named from error
    finally:
        if before.exists() and not path.exists():
            before.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def _named(error: Exception, path: Path) -> OSError | None:
    """A fault of the disk by the target's name: the temporary one, or none, says nothing to people. None =
    it is no fault of the disk."""
    number = storage_errno(error)
    return None if number is None else OSError(number, os.strerror(number), str(path))


def force(path: Path) -> None:
    """Makes sure that a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_aside(path: Path) -> Path:
    """Renames a damaged file, so that it is made again and its bytes are kept; returns where it is now.

    A file that another process has renamed already is no error.
    """
    place = path.with_name(f"{path.name}{DAMAGED}")
    with suppress(FileNotFoundError):
        path.replace(place)
    return place


def is_leftover(path: Path) -> bool:
    """Whether a name is that of a temporary file or folder of a process that was killed."""
    return path.name.startswith(".") and path.name.endswith(PART)


def sweep(folder: Path) -> None:
    """Removes what killed processes left half-written, in all subfolders too. A folder that was moved aside
    for a new one which never came is put back."""
    for path in [each for each in folder.rglob(f".*{PART}") if is_leftover(each)]:
        place = path.with_name(path.name[1:].removesuffix(_BEFORE).rpartition(".")[0])
        if path.name.endswith(_BEFORE) and path.is_dir() and not place.exists():
            path.rename(place)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole; a float that is not finite is an error, not `NaN`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cut_half_line(path: Path) -> None:
    """Takes a last line without an end, which a killed process left, off a file of lines."""
    if not path.is_file():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
