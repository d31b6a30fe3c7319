"""What a trainer goes through: the negatives of positive weight, shared evenly by the processes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler

if TYPE_CHECKING:
    from datasets import Dataset

FILLER = -1
"""The item of `PositiveRows` that stands where a process would go without."""


class PositiveRows(torch.utils.data.Dataset):
    """The tokenised negatives of positive weight, each with its `index`, the position in the whole set of N.

    A filler is the first of them with its index less N: looked up it is the same row, and below 0 it counts
    for nothing.
    """

    def __init__(self, negatives: Dataset, positions: np.ndarray) -> None:
        self.negatives, self.positions = negatives, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: int) -> dict[str, Any]:
        position = int(self.positions[0 if item == FILLER else item])
        return {
            **self.negatives[position],
            "index": position - (len(self.negatives) if item == FILLER else 0),
        }


class EvenOrder:
    """The order of one process alone, made up with fillers to micro-batches of the same size everywhere.

    Libraries fill up with rows from the beginning of the pass, which would count twice.

    Args:
        rows: to be shuffled. together: rows of one micro-batch over all processes. seed: None = torch's own.
    """

    def __init__(self, rows: PositiveRows, together: int, seed: int | None) -> None:
        self.order = SeedableRandomSampler(rows, data_seed=seed)
        self.fillers = -len(rows) % together

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from repeat(FILLER, self.fillers)

    def __len__(self) -> int:
        return len(self.order) + self.fillers

    def set_epoch(self, epoch: int) -> None:
        """Which pass is next: each has an order of its own."""
        self.order.set_epoch(epoch)
