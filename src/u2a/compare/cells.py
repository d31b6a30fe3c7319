"""The finished runs of a comparison: a JSON file each, written whole; a lock for each that is under way.

Several processes, on several machines that share the folder, may work on it at once: who holds a cell's lock
makes it. A lock is the kernel's, so one whose process died is free again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from u2a.compare.plan import CellName
from u2a.storage.files import set_aside, write_json
from u2a.types import UserError

Cell = dict[str, Any]

log = logging.getLogger("u2a")


@dataclass(frozen=True)
class CellStore:
    """The folder of the cells. `settings` of a comparison's entries by name: a cell that was made with other
    ones is refused. `model` tells the original model; a cell has that of the one that it began at. `defaults`
    are options by entry that a cell of before there were any counts as made with."""

    folder: Path
    settings: Mapping[str, Mapping[str, Any]]
    model: str = ""
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def read(self, name: CellName) -> Cell | None:
        """A finished cell, None if there is none. A damaged one is set aside and said, and made again.

        Raises:
            UserError: it cannot be read, or was made with other options.
        """
        path = self.folder / name.file
        if not path.is_file():
            return None
        try:
            cell: Cell = json.loads(path.read_text(encoding="utf-8"))
            before = {**self.defaults.get(name.entry, {}), **cell["settings"]}
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            log.warning("%s is damaged (%r): kept as %s, and made again", path, error, set_aside(path).name)
            return None
        now = json.loads(json.dumps(self.settings[name.entry]))
        if "loss" not in now:  # cells of before noted one for methods that have none
            before = {k: v for k, v in before.items() if k not in ("loss", "loss_options")}
        if before != now:
            raise UserError(f"{path} was made with other options of {name.entry}; delete it, or rename one")
        if (seed := cell.get("seed", name.seed)) != name.seed:
            raise UserError(f"{path} was made with --seed {seed}; name another --cells or --output")
        return cell

    def write(self, name: CellName, cell: Mapping[str, Any]) -> None:
        """Writes a cell whole."""
        settings = dict(self.settings[name.entry])
        write_json(self.folder / name.file, {**cell, "model": self.model, "settings": settings})

    def remove(self, name: CellName) -> None:
        """Takes a cell away, to be made again."""
        (self.folder / name.file).unlink(missing_ok=True)

    @contextmanager
    def claim(self, name: CellName) -> Iterator[bool]:
        """Within, the cell is this process's to make; False = another one is at it, or has made it.

        Raises:
            UserError: the lock cannot be opened, or is a link.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f".{name.file}.lock"
        try:  # never through a link: the folder may be shared, and the link lead to a file of the user's
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise UserError(f"{path}, the lock of a cell: {error.strerror}") from None
        with os.fdopen(descriptor, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield not (self.folder / name.file).is_file()
