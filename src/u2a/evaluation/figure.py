"""A measured figure with what it was made of, so that intervals and paired differences can be taken."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from u2a.types import GuardStop

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Examples (…, n, k) -> the figure (…): what a resampled set of examples gives."""

REPLICATES = 2000
"""Bootstrap replicates behind an interval."""
_AT_ONCE = 1 << 24
"""Most values of replicates held at once."""


class Estimate(NamedTuple):
    """`value` with a 95 % bootstrap interval over `n` examples; NaN = undefined. A perplexity too large for a
    float is infinite, and then there is no interval."""

    value: float
    low: float
    high: float
    n: int


def mean(values: Array) -> Array:
    """Mean of the only column."""
    return values[..., 0].mean(axis=-1)


def ratio(values: Array) -> Array:
    """Σ of the first column / Σ of the second: a figure per token over texts of unequal length."""
    return values[..., 0].sum(axis=-1) / values[..., 1].sum(axis=-1)


def perplexity_of(values: Array) -> Array:
    """exp(Σ NLL / Σ tokens), columns NLL and tokens; infinite from about 709 nats per token on."""
    with np.errstate(over="ignore"):
        return np.exp(ratio(values))


def known_mean(values: Array) -> Array:
    """Mean of the first column over the examples whose second is 1 (known) and not 0; NaN where none is.

    An unknown example drops out of the figure and of every replicate that draws it, and keeps its place, so
    that paired draws stay aligned.
    """
    known = values[..., 1]
    total, count = (values[..., 0] * known).sum(axis=-1), known.sum(axis=-1)
    return np.divide(total, count, out=np.full(np.shape(count), math.nan), where=count > 0)


def auc(values: Array) -> Array:
    """P(score of a member > score of a non-member), ties half: columns score and 1 = member, 0 = not.

    The Mann–Whitney statistic over the product of the groups' sizes; NaN with one group alone.
    """
    from scipy.stats import rankdata

    score, member = values[..., 0], values[..., 1]
    inside = member.sum(axis=-1)
    outside = member.shape[-1] - inside
    ranks = rankdata(score, axis=-1)
    above = (ranks * member).sum(axis=-1) - inside * (inside + 1) / 2
    pairs = inside * outside
    return np.divide(above, pairs, out=np.full(np.shape(above), math.nan), where=pairs > 0)


@dataclass(frozen=True)
class Figure:
    """One metric of one model.

    `values` (n, k) float64 holds what each example contributes, and `statistic` makes the figure of them.
    Figures of the same name have the same examples in the same order for every model. `better` is `higher`,
    `lower` or `neither` (a description, such as the length of answers); `unit` is in words. A statistic that
    examples drawn twice would falsify (how many words are different) is not `resampled` and has no interval.
    `counts` are what a reader should know of how the values came about, such as how many are missing.
    """

    name: str
    values: Array
    better: str
    unit: str
    statistic: Statistic = field(default=mean, repr=False)
    resampled: bool = True
    counts: Mapping[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.values.ndim == 1:
            object.__setattr__(self, "values", self.values[:, None])
        bad = np.flatnonzero(~np.isfinite(self.values).all(axis=1))
        if len(bad):
            raise GuardStop(f"{self.name} of example {bad[0]} is not finite")

    def as_json(self) -> dict[str, Any]:
        """Everything of it but its name, as JSON holds it; `figure_of_json` makes it again."""
        return {
            "values": self.values.tolist(),
            "better": self.better,
            "unit": self.unit,
            "statistic": f"{self.statistic.__module__}:{self.statistic.__qualname__}",
            "resampled": self.resampled,
            "counts": dict(self.counts),
        }

    @property
    def value(self) -> float:
        """The figure itself; NaN without examples."""
        return float(self.statistic(self.values)) if len(self.values) else math.nan

    def estimate(self, seed: int = 0) -> Estimate:
        """The figure with its interval: percentiles over examples drawn with replacement."""
        return estimate_of(self.value, self.drawn(seed), len(self.values))

    def minus(self, other: Figure, seed: int = 0) -> Estimate:
        """This figure minus another model's, paired: the same examples are drawn for both.

        Raises:
            ValueError: they are not figures of the same name over as many examples.
        """
        if self.name != other.name or len(self.values) != len(other.values):
            raise ValueError(f"{self.name} and {other.name} are not over the same examples")
        with np.errstate(invalid="ignore"):  # infinite perplexities of both
            drawn = self.drawn(seed) - other.drawn(seed)
        return estimate_of(self.value - other.value, drawn, len(self.values))

    def drawn(self, seed: int = 0) -> Array:
        """The figure of every replicate, (REPLICATES,), empty where it is not resampled. The same seed draws
        the same examples of figures that have as many."""
        rows = _draws(len(self.values), seed)
        if not rows.size or not self.resampled:
            return np.zeros(0)
        step = max(1, _AT_ONCE // max(1, rows.shape[1] * self.values.shape[1]))
        blocks = [self.statistic(self.values[rows[i : i + step]]) for i in range(0, len(rows), step)]
        return np.concatenate(blocks)


def figure_of_json(name: str, kept: Mapping[str, Any]) -> Figure:
    """The figure that `as_json` wrote.

    Raises:
        ValueError: its statistic is none of ours.
    """
    module, _, attribute = str(kept["statistic"]).partition(":")
    if not module.startswith("u2a.evaluation.") or not attribute.isidentifier():
        raise ValueError(f"{name}: unknown statistic {kept['statistic']!r}")
    statistic = getattr(importlib.import_module(module), attribute)
    values = np.asarray(kept["values"], np.float64)
    return Figure(
        name, values, kept["better"], kept["unit"], statistic, kept["resampled"], kept.get("counts", {})
    )


def _draws(count: int, seed: int) -> NDArray[np.int64]:
    """Positions of the examples of every replicate: (REPLICATES, n)."""
    if count == 0:
        return np.zeros((0, 0), np.int64)
    return np.random.default_rng(seed).integers(count, size=(REPLICATES, count))


def estimate_of(value: float, drawn: Array, n: int) -> Estimate:
    """`value` of n examples with the 95 % interval of its replicates, where there is one."""
    known = drawn[np.isfinite(drawn)]
    if n < 2 or not len(known) or np.isinf(value) or np.isinf(drawn).any():  # one example has no spread
        return Estimate(value, math.nan, math.nan, n)
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)
