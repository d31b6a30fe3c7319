"""Which negatives are unlearned together: seeded subsets of one size, and single ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from u2a.types import UserError
from u2a.weighting import parse_selection

Members = NDArray[np.bool_]


def subset_size(share: str, negatives: int) -> int:
    """How many of N negatives are in each subset: from a percentage or a number, at least 1, below N.

    Raises:
        UserError: no such share, or a subset would hold every negative, so that all subsets are one.
    """
    try:
        size = parse_selection(share, negatives)
    except UserError:
        hint = "take a percentage such as 25% or a whole number such as 15"
        raise UserError(f"--subset-share {share}: {hint}") from None
    if size >= negatives:
        raise UserError(f"--subset-share {share}: a subset must leave some of the {negatives} negatives out")
    return size


def draw_subsets(negatives: int, size: int, count: int, seed: int) -> Members:
    """S subsets of `size` out of N negatives: (S, N) bool. The same arguments give the same subsets.

    Each subset takes those that the fewest earlier ones have, drawn at random among equals. So no two
    negatives ever differ by more than one in how many subsets they are in, and sums over subsets carry
    as much about one negative as about another.
    """
    draw = np.random.default_rng((seed, 0))
    members = np.zeros((count, negatives), dtype=bool)
    taken = np.zeros(negatives, dtype=np.int64)
    for subset in members:
        rarest = np.lexsort((draw.random(negatives), taken))[:size]
        subset[rarest] = True
        taken[rarest] += 1
    return members


def draw_singles(negatives: int, count: int, seed: int) -> Members:
    """K different negatives, each alone: (K, N) bool.

    Raises:
        UserError: there are fewer negatives than that.
    """
    if count > negatives:
        raise UserError(f"--singles {count}: there are only {negatives} negatives")
    picks = np.random.default_rng((seed, 1)).permutation(negatives)[:count]
    return np.arange(negatives) == picks[:, None]
