"""Which metrics `u2a evaluate` measures: those that have data, options and, where text is sent, consent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from u2a.commands.schemas import EVALUATE
from u2a.commands.terminal import say
from u2a.evaluate import METRICS, Metric
from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.evaluate.material import Plan

_FLAGS = {"prompts": "test", "plain": "text"}
"""Role of the material -> the flag that brings it, where they differ."""


def choose_metrics(
    values: Mapping[str, Any], given: Collection[str], plan: Plan
) -> tuple[dict[str, Metric], dict[str, str]]:
    """The metrics to measure, by name, and why each other one is left out.

    What would be sent to other programs is shown, whether or not it is allowed. Sends no text of the user's.

    Args:
        given: flags of rows that were given.

    Raises:
        UserError: a name is unknown; one that was asked for by name is left out; its options are unusable; or
            nothing is left to measure.
    """
    asked_for = [name.strip() for name in values["metrics"].split(",") if name.strip()]
    chosen: dict[str, Metric] = {}
    left_out: dict[str, str] = {}
    for name in asked_for:
        if name not in METRICS:
            raise UserError(f"--metrics {name}: take some of {', '.join(METRICS)}")
    for name in asked_for or METRICS:
        metric = EVALUATE.part(METRICS[name], values)
        if why := _missing(metric, values, given) or _not_allowed(metric, values, plan):
            left_out[name] = why
        else:
            chosen[name] = metric
    reasons = [f"{name}: {why}" for name, why in left_out.items()]
    if asked_for and left_out:
        raise UserError("; ".join(f"--metrics {reason}" for reason in reasons))
    if not chosen:
        raise UserError(f"nothing to measure: {'; '.join(reasons)}")
    return chosen, left_out


def _missing(metric: Any, values: Mapping[str, Any], given: Collection[str]) -> str:
    """Which data and options a metric lacks; checks the options of one that lacks none."""
    groups = [[_FLAGS.get(role, role) for role in group] for group in metric.needs]
    lacking = [group for group in groups if not any(flag in given for flag in group)]
    asks = getattr(metric, "asks", ())
    if asks and not any(values[name] for name in asks):
        lacking.append(list(asks))
    if lacking:
        return "it needs " + " and ".join(map(_either, lacking))
    if hasattr(metric, "check"):
        metric.check()
    return ""


def _not_allowed(metric: Any, values: Mapping[str, Any], plan: Plan) -> str:
    """Shows what a metric would send away; names the option that would allow it, where nothing does."""
    consent = getattr(metric, "consent", "")
    outlook = metric.outlook(plan) if consent else ""
    if outlook:
        say(outlook)
    return f"it needs {_either([consent])}; nothing was sent" if outlook and not values[consent] else ""


def _either(names: Collection[str]) -> str:
    return " or ".join("--" + name.replace("_", "-") for name in names)
