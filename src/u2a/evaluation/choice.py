"""Which metrics are measured: those that have data, options and, where text is sent, consent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.evaluation import Metric
    from u2a.evaluation.material import Plan

_FLAGS = {"prompts": "test", "plain": "text"}
"""Role of the material -> the flag that brings it, where they differ."""
NOT_SENT = "nothing was sent"
"""How the reason ends for a metric that was set up, but for the consent to send."""


def measurable(
    metrics: Mapping[str, Metric],
    given: Collection[str],
    plan: Plan,
    say: Callable[[str], None],
    *,
    asked_for: bool,
) -> tuple[dict[str, Metric], dict[str, str]]:
    """The metrics that can be measured, by name, and why each other one is left out.

    What would be sent to other programs is said, whether or not it is allowed. Sends no text of the user's.

    Args:
        given: flags of rows that were given. asked_for: the user named these metrics, so each must be.

    Raises:
        UserError: one that was asked for is left out, its options are unusable, or nothing is left.
    """
    chosen: dict[str, Metric] = {}
    left_out: dict[str, str] = {}
    for name, metric in metrics.items():
        if why := _missing(metric, given) or _not_allowed(metric, plan, say):
            left_out[name] = why
        else:
            chosen[name] = metric
    reasons = [f"{name}: {why}" for name, why in left_out.items()]
    if asked_for and left_out:
        raise UserError("; ".join(f"--metrics {reason}" for reason in reasons))
    if not chosen:
        raise UserError(f"nothing to measure: {'; '.join(reasons)}")
    return chosen, left_out


def _missing(metric: Any, given: Collection[str]) -> str:
    """Which data and options a metric lacks; checks the options of one that lacks none."""
    groups = [[_FLAGS.get(role, role) for role in group] for group in metric.needs]
    lacking = [group for group in groups if not any(flag in given for flag in group)]
    asks = getattr(metric, "asks", ())
    if asks and not any(getattr(metric, name) for name in asks):
        lacking.append(list(asks))
    if lacking:
        return "it needs " + " and ".join(map(_either, lacking))
    if hasattr(metric, "check"):
        metric.check()
    return ""


def _not_allowed(metric: Any, plan: Plan, say: Callable[[str], None]) -> str:
    """Says what a metric would send away; names the option that would allow it, where nothing does."""
    consent = getattr(metric, "consent", "")
    outlook = metric.outlook(plan) if consent else ""
    if outlook:
        say(outlook)
    refused = outlook and not getattr(metric, consent)
    return f"it needs {_either([consent])}; {NOT_SENT}" if refused else ""


def _either(names: Collection[str]) -> str:
    return " or ".join("--" + name.replace("_", "-") for name in names)
