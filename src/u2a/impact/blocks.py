"""Scores made block by block and kept, so that `--resume` goes on after the last whole block.

A block is so many negatives in the order of the rows, scored by themselves: a run that was cut off and one
that was not compute the very same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from u2a import interruption, processes
from u2a.storage.files import PART
from u2a.storage.kept_state import Damaged, Tensors, read_state, write_state

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.passes.dataset import Progress

BLOCK = 512
"""Negatives in a block: some dozens of batches, so that neither a kill nor the cut costs much."""
_OURS = re.compile(rf".+-\d{{6,}}\.safetensors|\..+-\d{{6,}}\.safetensors\.[0-9a-f]{{16}}{re.escape(PART)}")
"""Names of blocks, and of those that a kill cut off."""
_SHARING = 8
"""Processes that such a block keeps busy; more get larger ones."""


@dataclass(frozen=True)
class Blocks:
    """A folder of blocks; `mark` says what is scored, and what was kept with another mark is made again.

    None for the folder = nothing is kept, and all texts are one block.
    """

    folder: Path | None = None
    mark: str = ""

    def marked(self, more: str) -> Blocks:
        """The same with more in the mark."""
        return replace(self, mark=f"{self.mark} {more}")

    def compute(
        self,
        name: str,
        texts: Dataset,
        of: Callable[[Dataset], Tensors],
        progress: Progress | None = None,
    ) -> Tensors:
        """What `of` finds for all texts; every tensor's last dimension is theirs.

        Of several processes the first alone reads and writes; all get the same.

        Args:
            name: of this pass over the texts.
            progress: for blocks that are there; `of` shows its own.
        """
        if self.folder is None:
            return of(texts)
        found: list[Tensors] = []
        factor = -(-processes.count() // _SHARING)
        size, kept = BLOCK * factor, self if factor == 1 else self.marked(f"{factor} blocks at once")
        for begin in range(0, len(texts), size):
            block = texts.select(range(begin, min(begin + size, len(texts))))
            path = self.folder / f"{name}-{begin // size:06d}.safetensors"
            part = processes.from_main(kept._read(path) if processes.is_main() else None)
            if part is None:
                part = of(block)
                with processes.as_one():
                    if processes.is_main():
                        write_state(path, part, kept.mark)
                interruption.check()
            elif progress:
                progress(len(block))
            found.append(part)
        return {key: torch.cat([part[key] for part in found], -1) for key in found[0]}

    def remove(self) -> None:
        """Removes the blocks, and the folder where nothing else is in it."""
        if self.folder is None or not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink()
        with suppress(OSError):  # not empty
            self.folder.rmdir()

    def _read(self, path: Path) -> Tensors | None:
        try:
            tensors, mark = read_state(path) if path.is_file() else ({}, None)
        except Damaged:
            return None
        return tensors if mark == self.mark else None


WHOLE = Blocks()
"""Keeps nothing."""
