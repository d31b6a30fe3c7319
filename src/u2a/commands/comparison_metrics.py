"""Which metrics of `u2a evaluate` a comparison can measure: it has no rows beside its own, and no judges."""

from __future__ import annotations

from u2a.evaluation import METRICS
from u2a.types import UserError

CORE_METRICS = ("preference", "perplexity", "forgetting")
"""Measured unless --metrics says otherwise; the tables have what they say in other words."""
ROLES = ("test", "negatives", "retain", "prompts")
"""What `Bench` has for a metric; `prompts` with --answers."""


def usable_metrics() -> list[str]:
    """Names that --metrics takes."""
    return [name for name in METRICS if not _reason(name)]


def metric_names(given: str, answers: int) -> list[str]:
    """The metrics that --metrics names.

    Raises:
        UserError: one is unknown, or would measure nothing here, and why.
    """
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if why := _reason(name):
            raise UserError(f"--metrics {name}: {why}; take some of {', '.join(usable_metrics())}")
        if ("prompts",) in METRICS[name].needs and not answers:
            raise UserError(f"--metrics {name}: no prompt is answered; give --answers above 0")
    return names


def _reason(name: str) -> str:
    """Why a metric cannot be taken; empty where it can."""
    if name not in METRICS:
        return "unknown"
    if name == "kl":
        return "it is in the table anyway"
    metric = METRICS[name]
    if getattr(metric, "asks", ()):
        return "it has options that compare has not; keep the models (--keep-models) for `u2a evaluate`"
    lacking = next((group for group in metric.needs if not set(group) & set(ROLES)), ())
    if lacking:
        flags = " or ".join(f"--{role.replace('_', '-')}" for role in lacking)
        return f"it needs {flags}, which compare has not; keep the models (--keep-models) for `u2a evaluate`"
    return ""
