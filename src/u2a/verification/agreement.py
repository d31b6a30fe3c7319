"""How well predicted changes agree with measured ones, and how well noise lets anything agree.

Linear datamodelling score (LDS; Park et al. 2023, TRAK, arXiv 2303.14186, section 2.2): Spearman's rank
correlation, over subsets S, between the predicted sums Σ_{i∈S} a_i and the measured changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]

REPLICATES = 2000
"""Bootstrap replicates behind an interval."""
FEWEST_FOR_INTERVAL = 10
"""Fewer subsets than this have no interval: drawn again, four that happen to be in order stay in order, and
the interval would be [1, 1]."""

_CONSTANT = 1e-9
"""Values whose spread is below this share of their size are one value and its rounding."""


@dataclass(frozen=True)
class Agreement:
    """Agreement over n subsets; NaN where it is undefined, as for a score that is the same everywhere.

    `lds` in [−1, 1] with its bootstrap 95 % `interval`; `pearson` the linear correlation. Measured ≈
    `slope`·predicted + `intercept` by least squares: the size of a score, which says nothing of the order.
    """

    lds: float
    interval: tuple[float, float]
    pearson: float
    slope: float
    intercept: float
    n: int


def agreement(predicted: Array, measured: Array, *, replicates: int = REPLICATES, seed: int = 0) -> Agreement:
    """Compares predicted sums (S,) with measured changes (S, R), one column for each seed.

    The measured change of a subset is its mean over seeds. The interval (NaN below `FEWEST_FOR_INTERVAL`
    subsets) comes from drawing subsets, and seeds where there are several, with replacement (the same seeds
    for all subsets of a replicate); replicates that are constant are left out.
    """
    mean = measured.mean(axis=1)
    draw = np.random.default_rng(seed)
    subsets, seeds = measured.shape
    rows = draw.integers(subsets, size=(replicates, subsets))
    columns = draw.integers(seeds, size=(replicates, seeds))
    again = measured[rows[:, :, None], columns[:, None, :]].mean(axis=2)
    found = spearman(predicted[rows], again)
    found = found[np.isfinite(found)]
    known = len(found) and subsets >= FEWEST_FOR_INTERVAL
    low, high = np.percentile(found, [2.5, 97.5]) if known else (math.nan, math.nan)
    slope, intercept = _line(predicted, mean)
    return Agreement(
        lds=float(spearman(predicted, mean)),
        interval=(float(low), float(high)),
        pearson=float(pearson(predicted, mean)),
        slope=slope,
        intercept=intercept,
        n=subsets,
    )


def spearman(x: Array, y: Array) -> Array:
    """Rank correlation over the last axis, ties by mean rank: (..., S), (..., S) -> (...)."""
    defined = _varies(x) & _varies(y)
    return np.where(defined, pearson(rankdata(x, axis=-1), rankdata(y, axis=-1)), math.nan)


def pearson(x: Array, y: Array) -> Array:
    """Linear correlation over the last axis: (..., S), (..., S) -> (...); NaN where one is constant."""
    defined = _varies(x) & _varies(y)
    x, y = (v - v.mean(axis=-1, keepdims=True) for v in (x, y))
    size = np.sqrt(np.square(x).sum(-1) * np.square(y).sum(-1))
    shape = np.broadcast_shapes(defined.shape, size.shape)
    return np.divide((x * y).sum(-1), size, out=np.full(shape, math.nan), where=defined & (size > 0))


def _varies(values: Array) -> NDArray[np.bool_]:
    return np.asarray(np.ptp(values, axis=-1) > _CONSTANT * np.abs(values).max(axis=-1))


def _line(x: Array, y: Array) -> tuple[float, float]:
    if not _varies(x):
        return math.nan, math.nan
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / np.square(x - x.mean()).sum())
    return slope, float(y.mean() - slope * x.mean())


@dataclass(frozen=True)
class Ceiling:
    """The largest agreement that the noise of the measured changes allows.

    `noise` is the standard deviation of one run's change between seeds, `spread` that of the subsets'
    changes, both in the unit of the change. `pearson` and `lds` are what a score would reach that predicts
    every subset's expected change exactly. `runs` went into `noise`. NaN = not known.
    """

    lds: float
    pearson: float
    noise: float
    spread: float
    runs: int


def noise_ceiling(measured: Array, runs: Sequence[Array]) -> Ceiling:
    """The ceiling from subsets that were unlearned with several seeds.

    With σ² the variance between seeds, pooled over `runs`, and V the variance of the S subsets' means over
    R seeds, a share 1 − σ²/(R·V) of V is real; its root is the correlation of the expected changes with the
    measured ones (Spearman 1904, reliability), and 6/π·arcsin(r/2) the rank correlation of normal variables
    of that correlation. A shift that a seed gives to all subsets alike counts as noise here although it
    changes no order, so the true ceiling may be higher.

    Args:
        measured: (S, R), one column for each seed. runs: for each subset all its changes, whatever the seed.
    """
    mean = measured.mean(axis=1)
    spread = float(mean.std(ddof=1)) if len(mean) > 1 else math.nan
    several = [each for each in runs if len(each) > 1]
    freedom = sum(len(each) - 1 for each in several)
    if not freedom or not spread > 0:
        return Ceiling(math.nan, math.nan, math.nan, spread, 0)
    variance = sum(float(np.square(each - each.mean()).sum()) for each in several) / freedom
    real = max(0.0, 1 - variance / (measured.shape[1] * spread**2))
    root = math.sqrt(real)
    lds = 6 / math.pi * math.asin(root / 2)
    return Ceiling(lds, root, math.sqrt(variance), spread, sum(len(each) for each in several))
