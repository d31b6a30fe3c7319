"""What `u2a compare` writes and shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from u2a.commands.session import minutes

if TYPE_CHECKING:
    from u2a.compare.outcome import Interval, Outcome

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def document(
    outcomes: Sequence[Outcome],
    cells: Mapping[str, Sequence[Mapping[str, Any]]],
    failed: Mapping[str, str],
    verdict: Sequence[str],
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """`comparison.json`, as docs/comparison.md describes it."""
    from u2a.compare.outcome import interval

    return {
        "schema": 1,
        "budget": {name: values[name] for name in ("steps", "batch_size", "seconds")},
        "nll_rise": values["nll_rise"],
        "verdict": list(verdict),
        "failed": dict(failed),
        "methods": {
            one.name: {
                "method": one.kind,
                "learning_rate": one.rate,
                "seeds": one.seeds,
                "margin_at_cost": _numbers(interval(one.at_cost)),
                "reached": one.reached,
                "margin": _numbers(interval(one.margins)),
                "accuracy": _numbers(interval(one.accuracy)),
                "nll_rise": float(one.rises.mean()),
                "kl": _plain(float(one.kl.mean())),
                "objective_change": float(one.objective.mean()),
                "seconds": one.seconds,
                "forward_tokens": one.forward_tokens,
                "trained_tokens": one.trained_tokens,
                "curve": [list(point) for point in one.curve],
                "figures": _figures(cells[one.name]),
            }
            for one in outcomes
        },
    }


def _figures(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every metric at the end: mean and spread over seeds."""
    from u2a.evaluation.figure import figure_of_json

    found: dict[str, list[float]] = {}
    about: dict[str, dict[str, Any]] = {}
    for cell in cells:
        for name, kept in cell["figures"].items():
            found.setdefault(name, []).append(figure_of_json(name, kept).value)
            about[name] = {"better": kept["better"], "unit": kept["unit"]}
    return {
        name: {
            "value": _plain(float(np.mean(each))),
            "least": _plain(min(each)),
            "most": _plain(max(each)),
            **about[name],
        }
        for name, each in found.items()
    }


def tables(outcomes: Sequence[Outcome], rise: float) -> list[Table]:
    """Methods by margin at equal cost, and what each cost."""
    from u2a.compare.outcome import interval

    order = sorted(outcomes, key=lambda one: -float(one.at_cost.mean()))
    quality: list[tuple[str, ...]] = [
        (
            one.name,
            _shown(interval(one.at_cost)) + ("" if one.reached else " *"),
            _shown(interval(one.margins)),
            f"{interval(one.accuracy).value:.3f}",
            f"{one.rises.mean():+.3f}",
            _short(float(one.kl.mean())),
        )
        for one in order
    ]
    cost: list[tuple[str, ...]] = [
        (
            one.name,
            f"{one.rate:g}" if one.rate else "–",
            str(one.seeds),
            minutes(one.seconds),
            f"{one.forward_tokens:,.0f}",
            f"{one.trained_tokens:,.0f}",
        )
        for one in order
    ]
    return [
        (
            f"Held-out margin over the original's, in nats [95 %]; * never rose by {rise:g}",
            ("method", f"at NLL +{rise:g}", "at the end", "accuracy", "NLL", "KL"),
            quality,
        ),
        (
            "Cost: median time and mean tokens over seeds; tokens without and with a gradient",
            ("method", "rate", "seeds", "time", "forward", "trained"),
            cost,
        ),
    ]


def _numbers(found: Interval) -> dict[str, float | None]:
    return {key: _plain(value) for key, value in found._asdict().items()}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _short(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _shown(found: Interval) -> str:
    ends = f" [{found.low:+.2f}, {found.high:+.2f}]" if math.isfinite(found.low) else ""
    return f"{found.value:+.2f}{ends}"
