"""Which retain rows an optimiser step takes: a function of the seed and the step alone."""

from __future__ import annotations

import numpy as np


def retain_rows(total: int, count: int, step: int, seed: int) -> list[int]:
    """Positions of the `count` retain rows, of `total`, at an optimiser step counted from 0.

    An endless seeded shuffle, each round in a new order, cut in steps: so a resumed run sees the same rows,
    and every row as often as any other.
    """
    first = step * count
    rounds = range(first // total, (first + count - 1) // total + 1)
    orders = [np.random.default_rng((seed, r)).permutation(total) for r in rounds]
    offset = first - rounds[0] * total
    return np.concatenate(orders)[offset : offset + count].tolist()
