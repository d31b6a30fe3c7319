"""Which metrics `u2a evaluate` measures: those that are named, or all that can be measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from u2a.commands.schemas import EVALUATE
from u2a.commands.terminal import say
from u2a.evaluation import JUDGES, METRICS, Metric
from u2a.evaluation.choice import measurable
from u2a.plugins import installed
from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.evaluation.material import Plan


def choose_metrics(
    values: Mapping[str, Any], given: Collection[str], plan: Plan
) -> tuple[dict[str, Metric], dict[str, str]]:
    """The metrics to measure, by name, and why each other one is left out: as `measurable`.

    Raises:
        UserError: as `measurable`; or a name is unknown.
    """
    asked_for = [name.strip() for name in values["metrics"].split(",") if name.strip()]
    for name in asked_for:
        if name not in METRICS:
            offered = dict.fromkeys([*METRICS, *installed("u2a.metrics")])
            raise UserError(f"--metrics {name}: take some of {', '.join(offered)}")
    metrics = {name: EVALUATE.part(METRICS[name], values) for name in asked_for or METRICS}
    if values["judge"] and "judge" in metrics:
        own = JUDGES[values["judge"]](**EVALUATE.chosen_options("judge", values))
        metrics["judge"] = replace(metrics["judge"], own_judge=own)
    return measurable(metrics, given, plan, say, asked_for=bool(asked_for))
