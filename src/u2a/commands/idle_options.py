"""Options of `u2a align` that count for nothing beside the others: said, since something was meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from u2a.config import ModelOptions, OuterOptions, UnlearnOptions
from u2a.losses import resolve_loss


def idle_options(values: Mapping[str, Any]) -> list[str]:
    """A warning for each that is not at its default and changes nothing."""
    _, term = resolve_loss(values["loss"], values["retain_loss"] or None)
    one_step = values["outer_steps"] == 1
    cases = (
        (UnlearnOptions, "retain_weight", term == "none", "there is no retain term: give --retain-loss"),
        (UnlearnOptions, "joint_share", values["joint"] == 0, "--joint is 0"),
        (OuterOptions, "restart", one_step, "there is one outer step: give more --outer-steps"),
        (ModelOptions, "lora_alpha", values["lora_rank"] == 0, "--lora-rank 0 trains all parameters"),
        (ModelOptions, "lora_dropout", values["lora_rank"] == 0, "--lora-rank 0 trains all parameters"),
        (ModelOptions, "lora_targets", values["lora_rank"] == 0, "--lora-rank 0 trains all parameters"),
    )
    found = [
        f"--{name.replace('_', '-')} has no effect here: {why}"
        for options, name, idle, why in cases
        if idle and values[name] != getattr(options, name)
    ]
    if one_step and values["utility_budget"] > 0:
        found.append(
            "--utility-budget only ends unlearning in one outer step: weights keep within it from the second "
            "on, when costs have been measured. Give more --outer-steps"
        )
    return found
