"""How much do the negatives differ? Who helps and harms, how concentrated the gain is, what explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]

CERTAIN = 1.96
"""Standard errors from zero beyond which an impact's sign is taken as known."""


@dataclass(frozen=True)
class Difference:
    """What the impacts of N negatives say about how unequal they are.

    `helps`, `harms`: shares of negatives with impact above and below 0. `surely_helps`, `surely_harms`: the
    same beyond `CERTAIN` standard errors over validation pairs (None without standard errors). `gini`: of
    the gains max(a, 0) over all N, 0 = every negative gives the same, towards 1 = a few give everything (NaN
    when none helps). `half_of_gain`: the smallest share of the negatives that holds half of Σ max(a, 0).
    `explained`: share of the variance of the impacts' ranks that the ranks of one property explain alone
    (squared Spearman correlation), by property, and `all together` for a linear model of all of them.
    """

    helps: float
    harms: float
    surely_helps: float | None
    surely_harms: float | None
    gini: float
    half_of_gain: float
    explained: dict[str, float]


def difference(
    impact: Array,
    se: Array | None,
    properties: Mapping[str, Array],
    category: Sequence[str] | None = None,
) -> Difference:
    """Describes impacts (N,).

    Args:
        se: (N,) their standard errors, if known.
        properties: numbers (N,) of each negative that may explain its impact, such as its length. One that
            is the same for all explains nothing.
        category: a name for each negative, if there are any; explains as much as the categories' means do.
    """
    gains = np.sort(np.maximum(impact, 0.0))[::-1]
    total = gains.sum()
    certain = None if se is None else (impact > CERTAIN * se, impact < -CERTAIN * se)
    enough = int(np.searchsorted(np.cumsum(gains), total / 2)) + 1
    return Difference(
        helps=float((impact > 0).mean()),
        harms=float((impact < 0).mean()),
        surely_helps=None if certain is None else float(certain[0].mean()),
        surely_harms=None if certain is None else float(certain[1].mean()),
        gini=gini(gains),
        half_of_gain=enough / len(impact) if total > 0 else float("nan"),
        explained=_explained(impact, properties, category),
    )


def gini(values: Array) -> float:
    """Gini coefficient of values ≥ 0: Σ_ij |x_i − x_j| / (2·N·Σx); NaN when all are 0."""
    ordered = np.sort(values)
    total = ordered.sum()
    if total <= 0:
        return float("nan")
    count = len(ordered)
    places = 2 * np.arange(1, count + 1) - count - 1
    return float((places * ordered).sum() / (count * total))


def _explained(
    impact: Array, properties: Mapping[str, Array], category: Sequence[str] | None
) -> dict[str, float]:
    ranks = _centred_ranks(impact)
    columns = {name: _centred_ranks(values)[:, None] for name, values in properties.items()}
    if category is not None:
        names = np.asarray(category)
        members = (names[:, None] == np.unique(names)[None, :]).astype(np.float64)
        columns["category"] = members - members.mean(0)
    columns = {name: column for name, column in columns.items() if column.any()}
    found = {name: _share(ranks, column) for name, column in columns.items()}
    if len(columns) > 1:
        found["all together"] = _share(ranks, np.concatenate(list(columns.values()), axis=1))
    return found


def _centred_ranks(values: Array) -> Array:
    ranks = rankdata(values)
    return ranks - ranks.mean()


def _share(target: Array, columns: Array) -> float:
    """Adjusted R² (Theil 1961) of a least-squares fit of centred columns (N, C) to a centred target (N,), at
    least 0: many columns explain something of anything, (rank/(N − 1)) of it in the mean."""
    total = float(target @ target)
    coefficients, _, rank, _ = np.linalg.lstsq(columns, target, rcond=None)
    left = len(target) - 1 - int(rank)
    if total == 0 or left <= 0:
        return 0.0
    fit = columns @ coefficients
    unexplained = 1 - float(fit @ fit) / total
    return max(0.0, 1 - unexplained * (len(target) - 1) / left)
