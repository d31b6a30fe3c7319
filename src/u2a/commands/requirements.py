"""What options must be given and go together: asked for before any model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from u2a.schema import Schema
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

WANTED = {
    "model": "the original model: a folder, a Hub id, a GGUF file, or `demo`",
    "negatives": "the bad answers",
    "preferences": "validation pairs with `prompt`, `chosen` and `rejected`; with none, take "
    "--objective nll and preferred texts, or --objective reward and prompts",
    "output": "a new folder for the run",
}


def require(values: Mapping[str, Any]) -> None:
    """Refuses options that leave out what every run needs; a pool stands for the negatives.

    Raises:
        UserError: names the option and what belongs there.
    """
    pooled = bool(values.get("pool"))
    for name, what in WANTED.items():
        if not values[name] and not (pooled and name == "negatives"):
            raise UserError(f"--{name} is missing: {what}")
    sources = ("negatives", "pool", "preferences", "test", "retain")
    stdin = [name for name in sources if values.get(name) == "-"]
    if len(stdin) > 1:
        raise UserError(f"only one of {', '.join('--' + s for s in stdin)} can be read from standard input")


def enough_retain_rows(values: Mapping[str, Any], retain: Dataset | None) -> None:
    """Raises `UserError` where a retain term would leave no retain row for U."""
    from u2a.losses import resolve_loss

    term = resolve_loss(values["loss"], values.get("retain_loss") or None)[1]
    if term in ("nll", "kl") and retain is not None and len(retain) < 2:
        raise UserError(
            f"{values['retain']}: the {term} retain term needs at least 2 rows, one to train on and one for U"
        )


def check_choices(values: Mapping[str, Any], schema: Schema) -> None:
    """Builds what the options choose, for its errors: nothing may fail later that could fail now."""
    from u2a.impact.curvature import CURVATURES
    from u2a.losses import loss_class, resolve_loss
    from u2a.losses.contract import check_loss
    from u2a.weighting import Weighting

    loss, retain_loss = resolve_loss(values["loss"], values.get("retain_loss") or None)
    check_loss(loss_class(loss)(**schema.chosen_options("loss", values)))
    if retain_loss in ("nll", "kl") and not values["retain"]:
        named = f"--retain-loss {retain_loss}" if values.get("retain_loss") else f"--loss {values['loss']}"
        raise UserError(f"{named} needs --retain: good texts to train on")
    if values["device"]:
        from u2a.models.options import check_device

        check_device(values["device"])
    CURVATURES[values["curvature"]](**schema.chosen_options("curvature", values))
    if values["curvature"] in ("kfac", "ekfac") and values["lora_rank"] == 0:
        raise UserError(f"--curvature {values['curvature']} needs an adapter: give --lora-rank above 0")
    if values["lora_dropout"] >= 1:
        raise UserError(f"--lora-dropout {values['lora_dropout']}: must be below 1")
    _check_objective(values)
    if values.get("merge") and values["quantize"] != "none":
        raise UserError("--merge cannot fold an adapter into a base in 4 bits; leave out one of the two")
    if "select" in values:
        Weighting(values["select"], values["eta"], values["rho"], values["weight_floor"])


def _check_objective(values: Mapping[str, Any]) -> None:
    from u2a.objectives.reward import prompt_room
    from u2a.scorers import named_scorer

    beta = values.get("objective_beta", 1.0)
    if values["objective"] == "reward":
        named_scorer(values["objective_reward_model"], values["objective_reward_function"])
        prompt_room(values["objective_max_new_tokens"], values["max_length"])
        if beta < 0:
            raise UserError(f"--objective-beta {beta}: must not be negative")
    elif beta <= 0:
        raise UserError(f"--objective-beta {beta}: must be positive")
