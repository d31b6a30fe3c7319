"""Metrics of a method over its seeds: mean, interval, and paired change from the original model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from u2a.evaluation.figure import Array, Estimate, Figure, estimate_of, figure_of_json

Figures = Mapping[str, Sequence[Figure]]
"""Name -> that figure of every seed."""


def figures_of(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[Figure]]:
    """Every metric at the end of the final cells of one method."""
    found: dict[str, list[Figure]] = {}
    for cell in cells:
        for name, kept in cell["figures"].items():
            found.setdefault(name, []).append(figure_of_json(name, kept))
    return found


def over_seeds(seeds: Sequence[Figure]) -> Estimate:
    """Mean over seeds; the interval draws examples and seeds anew, together. `n` are the examples."""
    return estimate_of(_mean(seeds), _drawn(seeds), len(seeds[0].values))


def change(seeds: Sequence[Figure], original: Sequence[Figure]) -> Estimate | None:
    """Mean over seeds minus the original model's figure, paired: the same examples are drawn for both. None
    where they are not over as many examples."""
    counts = {len(one.values) for one in (*seeds, *original)}
    if len(counts) > 1:
        return None
    with np.errstate(invalid="ignore"):  # infinite perplexities of both
        drawn = _drawn(seeds) - _drawn(original)
        return estimate_of(_mean(seeds) - _mean(original), drawn, counts.pop())


def _mean(seeds: Sequence[Figure]) -> float:
    return float(np.mean([one.value for one in seeds]))


def _drawn(seeds: Sequence[Figure]) -> Array:
    """Means of every replicate, (REPLICATES,), empty where nothing is resampled: its examples, the same for
    all seeds, and as many seeds as there are."""
    each = np.stack([one.drawn() for one in seeds])  # (S, REPLICATES)
    rows = np.random.default_rng(1).integers(len(seeds), size=each.shape)
    mean: Array = np.take_along_axis(each, rows, axis=0).mean(axis=0)
    return mean
