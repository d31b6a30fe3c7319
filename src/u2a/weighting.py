"""From impacts to weights: greedy selection, mirror ascent on the scaled simplex, sparsity, floor.

The outer problem is max_ω J(φ*(ω)) − ρ·Σ√ω_i with ω ≥ 0 and Σω = |S| (design, section 2). Impacts are
dJ/dω, so weights grow with impact. Arrays are numpy float64 of shape (N,), one entry a negative;
`weights[i] > 0` means that i is selected.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from u2a.types import UserError

Array = NDArray[np.float64]

log = logging.getLogger("u2a")

_MOST_PRESSURE = 1e12
"""On costs, in units of impact: by then the selected negative of least cost has all the weight, unless costs
differ by less than rounding."""

HOW_MANY = "take a percentage such as 30% or a whole number such as 200"
"""What `select` may be."""


@dataclass(frozen=True)
class Weighting:
    """How weights follow impacts.

    Args:
        select: how many negatives at most, `"30%"` of them or a number ≥ 1.
        eta: step of the mirror ascent; no unit, since scores are divided by their scale first.
        rho: strength ρ of the sparsity term, in units of that scale.
        floor: a weight below it leaves the selected set (mean weight = 1).
    """

    select: str = "50%"
    eta: float = 0.5
    rho: float = 0.0
    floor: float = 0.05

    def __post_init__(self) -> None:
        parse_selection(self.select, 1)
        for name in ("eta", "rho", "floor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} must be a finite number of at least 0, got {value}")
        if self.floor >= 1:
            raise UserError(f"the weight floor must be below the mean weight 1, got {self.floor}")


def parse_selection(select: str, total: int) -> int:
    """How many of `total` negatives `--select` asks for: at least 1, at most `total`.

    Raises:
        UserError: neither a percentage in (0, 100] nor a whole number ≥ 1.
    """
    text = str(select).strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1])
            if not 0 < share <= 100:
                raise ValueError
            return max(1, min(total, round(total * share / 100)))
        count = int(text)
        if count < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"--select {select}: {HOW_MANY}") from None
    return min(total, count)


def select_greedily(impact: Array, count: int, prior: Array) -> Array:
    """The `count` largest impacts above zero: 0/1 times the prior weight, rescaled so that Σω = |S|.

    Negatives of prior weight 0 are never selected. All zero where no impact is positive: nothing here is
    worth unlearning. Ties go to the earlier row.
    """
    candidates = np.flatnonzero((impact > 0) & (prior > 0))
    chosen = candidates[np.argsort(-impact[candidates], kind="stable")[:count]]
    weights = np.zeros_like(impact)
    weights[chosen] = prior[chosen]
    return _rescaled(weights)


def impact_scale(impact: Array, weights: Array) -> float:
    """s, the root mean square impact of the selected set: frozen at the first outer step."""
    return float(np.sqrt(np.mean(np.square(impact[weights > 0]))))


def mirror_ascent(weights: Array, impact: Array, scale: float, options: Weighting) -> Array:
    """ω_i ← |S|·ω_i·exp(η·(a_i/s − ρ/(2√ω_i))) / Σ_j(…), on the selected set; others stay 0.

    Exponentiated gradient ascent (Kivinen & Warmuth 1997) on J − ρΣ√ω; computed through logarithms, so
    that no score is too large for it.
    """
    selected = weights > 0
    if not selected.any():
        return weights.copy()
    gain = impact[selected] / scale - options.rho / (2 * np.sqrt(weights[selected]))
    logits = np.log(weights[selected]) + options.eta * gain
    updated = np.zeros_like(weights)
    # never quite 0: who leaves the selected set is the floor's decision, not underflow's
    updated[selected] = np.exp(logits - logits.max()).clip(min=np.finfo(np.float64).tiny)
    return _rescaled(updated)


def warn_of_idle_rho(weights: Array, options: Weighting, outer_steps: int) -> None:
    """Says where ρ cannot do anything: the penalty of equal weights is the same for all, and normalisation
    takes it out again, so that it acts from the second outer step on."""
    selected = weights[weights > 0]
    if options.rho > 0 and outer_steps == 1 and len(selected) and np.ptp(selected) == 0:
        log.warning(
            "rho %g changes nothing in one outer step, where all weights begin equal: give more outer steps",
            options.rho,
        )


def exchange(weights: Array, score: Array, prior: Array, options: Weighting) -> Array:
    """Weights under the floor leave S; as many better negatives may enter, with the floor's weight.

    One enters when its score is positive and above the least of those that stay, and its prior weight is at
    least their mean. A smaller prior would make its weight a smaller part of the floor's, and it would leave
    again at once. The entrants' weight is the floor's after rescaling, for the same reason.

    Args:
        score: what negatives are ranked by: impacts, or impacts less what costs take off them.
    """
    leaving = (weights > 0) & (weights < options.floor)
    staying = (weights > 0) & ~leaving
    updated = np.where(staying, weights, 0.0)
    if leaving.any() and staying.any():
        threshold = max(0.0, float(score[staying].min()))
        usual = float(prior[staying].mean()) * (1 - 1e-9)  # a hair less: the mean of equal ones is rounded
        outside = np.flatnonzero((weights == 0) & (prior > 0) & (prior >= usual) & (score > threshold))
        best = outside[np.argsort(-score[outside], kind="stable")[: int(leaving.sum())]]
        # e with e·|S|/(Σ_staying + e·k) = floor, for k that enter; a hair more, against rounding
        room = np.count_nonzero(staying) + len(best) * (1 - options.floor)
        updated[best] = options.floor * float(updated.sum()) / room * (1 + 1e-9)
    return _rescaled(updated)


def within_budget(
    weights: Array, impact: Array, cost: Array, scale: float, budget: float, options: Weighting
) -> Array | None:
    """The mirror ascent step with the least pressure ν on costs that keeps their mean, Σω_i·c_i/Ω, ≤ budget;
    None where no ν does.

    Ascends on a_i − ν·c_i; `cost` and `budget` are in the same, calibrated unit. A mean, since what is
    trained is divided by Ω too.
    """
    pressure = _least_pressure(weights, impact, cost, scale, budget, options)
    return None if pressure is None else mirror_ascent(weights, impact - pressure * cost, scale, options)


def step_within_budget(
    weights: Array, impact: Array, cost: Array, scale: float, budget: float, prior: Array, options: Weighting
) -> Array | None:
    """`within_budget` and then `exchange`, their mean cost ≤ budget too; None as there.

    Entrants are ranked by a_i − ν·c_i, with the step's ν, and need an impact above 0. Where they would take
    the mean past the budget, nobody enters; where it is past it even so, since cheap negatives left, nobody
    leaves either.
    """
    pressure = _least_pressure(weights, impact, cost, scale, budget, options)
    if pressure is None:
        return None
    score = impact - pressure * cost
    held = mirror_ascent(weights, score, scale, options)
    for may_enter in (impact > 0, np.zeros(len(impact), bool)):
        ranked = np.where((weights > 0) | may_enter, score, -np.inf)
        exchanged = exchange(held, ranked, prior, options)
        if mean_cost(exchanged, cost) <= budget:
            return exchanged
    return held


def _least_pressure(
    weights: Array, impact: Array, cost: Array, scale: float, budget: float, options: Weighting
) -> float | None:
    """ν in impact per unit of cost: 0 where the budget is kept anyway, None where no ν keeps it. Found by
    bisection, in a unit in which impacts and costs are of the same size."""

    def kept(pressure: float) -> bool:
        updated = mirror_ascent(weights, impact - pressure * cost, scale, options)
        return mean_cost(updated, cost) <= budget

    if kept(0.0):
        return 0.0
    size = impact_scale(cost, weights)
    if size == 0:  # nothing costs or gains anything, and what is left is below 0
        return None
    unit = scale / size
    low, high = 0.0, 1.0
    while not kept(high * unit):
        if high >= _MOST_PRESSURE:
            return None
        low, high = high, high * 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if kept(middle * unit) else (middle, high)
    return high * unit


def mean_cost(weights: Array, cost: Array) -> float:
    """Σω_i·c_i/Ω."""
    return float(weights @ cost / weights.sum())


def _rescaled(weights: Array) -> Array:
    """The same proportions with Σω = |S|."""
    total = float(weights.sum())
    return weights * (np.count_nonzero(weights) / total) if total > 0 else weights
