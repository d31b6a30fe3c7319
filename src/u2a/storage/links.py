"""Folders that came from others: a link in them must not lead out, to be read from or written to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from u2a.types import UserError

WEIGHTS = (".safetensors", ".gguf")
"""Links between files of these kinds may lead anywhere: nothing of such a file is ever copied as text."""


def refuse_links_out(folder: Path, *, below: Sequence[str] = ()) -> None:
    """Looks at what lies in a folder, and in its sub-folders `below`, without opening anything.

    The folder may be reached by a link itself. In a snapshot of the Hub's cache, links lead to its `blobs`.

    Raises:
        UserError: a link in it leads out of it, and is none between weights.
    """
    home = folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    for place in (folder, *(folder / name for name in below)):
        if not place.is_dir():
            continue
        for entry in sorted(place.iterdir()):
            if not entry.is_symlink():
                continue
            target = Path(os.path.realpath(entry))
            inside = target.is_relative_to(home) or target.is_relative_to(blobs)
            if not inside and not (entry.suffix in WEIGHTS and target.suffix == entry.suffix):
                raise UserError(f"{entry} is a link that leads out of {folder}: put the file itself there")
