"""What `u2a compare` writes and shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from u2a.commands.session import minutes

if TYPE_CHECKING:
    from u2a.compare.outcome import Interval, Outcome
    from u2a.evaluation.figure import Estimate

CORE_FIGURES = {
    *("accuracy", "accuracy_per_token", "margin", "margin_per_token", "implicit_reward_margin"),
    *("chosen_logprob", "rejected_logprob", "perplexity_retain", "negative_logprob", "negative_extracted"),
}
"""What the metrics of `CORE_METRICS` give."""
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def document(
    outcomes: Sequence[Outcome],
    cells: Mapping[str, Sequence[Mapping[str, Any]]],
    failed: Mapping[str, str],
    verdict: Sequence[str],
    values: Mapping[str, Any],
    edges: Mapping[str, str],
) -> dict[str, Any]:
    """`comparison.json`, as docs/comparison.md describes it; `edges` as `tables` takes them."""
    from u2a.compare.outcome import interval

    original = cells[next(one.name for one in outcomes if one.kind == "original")]
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
                "rate_at_edge": edges.get(one.name, ""),
                "seeds": one.seeds,
                "margin_at_cost": _numbers(interval(one.at_cost)),
                "reached": one.reached,
                "margin": _numbers(interval(one.margins)),
                "accuracy": _numbers(interval(one.accuracy)),
                "nll_rise": float(one.rises.mean()),
                "kl": _plain(float(one.kl.mean())),
                "repetition": _plain(float(one.repetition.mean())),
                "repetition_rise": _plain(float(one.repetition_rise.max())),
                "overlap": _plain(float(one.overlap.mean())),
                "overlap_rise": _plain(float(one.overlap_rise.max())),
                "objective_change": float(one.objective.mean()),
                "seconds": one.seconds,
                "forward_tokens": one.forward_tokens,
                "trained_tokens": one.trained_tokens,
                "curve": [list(point) for point in one.curve],
                "figures": _figures(cells[one.name], original),
            }
            for one in outcomes
        },
    }


def _figures(cells: Sequence[Mapping[str, Any]], original: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every metric at the end: mean and spread over seeds, interval, and change from the original model."""
    from u2a.compare.figures import change, figures_of, over_seeds

    before, found = figures_of(original), {}
    for name, seeds in figures_of(cells).items():
        each, whole = [one.value for one in seeds], over_seeds(seeds)
        moved = change(seeds, before[name]) if name in before and cells is not original else None
        found[name] = {
            **_numbers(whole),
            "n": whole.n,
            "least": _plain(min(each)),
            "most": _plain(max(each)),
            "change": None if moved is None else {**_numbers(moved), "n": moved.n},
            "better": seeds[0].better,
            "unit": seeds[0].unit,
        }
    return found


def rates_at_an_edge(ends: Mapping[str, str]) -> list[str]:
    """What the verdict says of picked rates that are an end of the grid: one beyond it may do better."""
    found = []
    for end, beyond in (("largest", "larger"), ("smallest", "smaller")):
        names = [name for name, which in ends.items() if which == end]
        if names:
            found.append(
                f"at the {end} rate of the grid, so that a {beyond} one may do better: {', '.join(names)}"
            )
    return found


def further_figures(methods: Mapping[str, Mapping[str, Any]]) -> Table:
    """Methods × figures of the metrics beyond the core, from the `methods` of the document."""
    names = dict.fromkeys(name for one in methods.values() for name in one["figures"])
    shown = [name for name in names if name not in CORE_FIGURES]
    marks = {"higher": " ↑", "lower": " ↓"}
    better = {name: f["better"] for one in methods.values() for name, f in one["figures"].items()}
    rows = [
        (method, *(_known(one["figures"].get(name, {}).get("value")) for name in shown))
        for method, one in methods.items()
    ]
    header = ("method", *(name.replace("_", " ") + marks.get(better[name], "") for name in shown))
    return "Further metrics, means over seeds; comparison.json has intervals and changes", header, rows


def _known(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def tables(outcomes: Sequence[Outcome], rise: float, edges: Mapping[str, str]) -> list[Table]:
    """Methods by margin at equal cost, and what each cost.

    Args:
        edges: `largest` or `smallest` by method where its rate is that of the grid.
    """
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
            _rate(one, edges),
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
            "Cost: median time and mean tokens over seeds; tokens without and with a gradient"
            + ("; (largest), (smallest) rate of the grid" if any(edges.values()) else ""),
            ("method", "rate", "seeds", "time", "forward", "trained"),
            cost,
        ),
    ]


def _rate(one: Outcome, edges: Mapping[str, str]) -> str:
    end = edges.get(one.name, "")
    return (f"{one.rate:g}" if one.rate else "–") + (f" ({end})" if end else "")


def _numbers(found: Interval | Estimate) -> dict[str, float | None]:
    return {key: _plain(getattr(found, key)) for key in ("value", "low", "high")}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _short(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _shown(found: Interval) -> str:
    ends = f" [{found.low:+.2f}, {found.high:+.2f}]" if math.isfinite(found.low) else ""
    return f"{found.value:+.2f}{ends}"
