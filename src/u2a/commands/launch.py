"""A command that a launcher started several times: what its processes can share, and how they join."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from u2a import processes
from u2a.types import UserError


def join_processes(values: Mapping[str, Any]) -> None:
    """Joins the processes of a launcher, if one started several.

    Raises:
        UserError: an option that several processes cannot share.
    """
    if not processes.launched():
        return
    stdin = [name for name in ("negatives", "preferences", "test", "retain") if values.get(name) == "-"]
    if stdin:
        raise UserError(f"--{stdin[0]} -: only one process can read standard input; name a file")
    _check_sharing(values)
    size, count = values.get("batch_size", 0), int(os.environ["WORLD_SIZE"])
    if size % count:
        raise UserError(
            f"--batch-size {size} counts over all processes, which are {count}: take a multiple of {count}"
        )
    processes.join(cpu=values["device"] == "cpu")


_NEED_ALL_OF_PHI = ("ggn", "kfac", "ekfac", "hessian")
"""Curvatures that no process can measure with its part of φ."""


def _check_sharing(values: Mapping[str, Any]) -> None:
    """Refuses what a model whose parameters are sharded over processes cannot do."""
    from u2a.losses import resolve_loss
    from u2a.models.sharding import is_asked_for

    processes.refuse_launcher()
    if not is_asked_for():
        return
    term = resolve_loss(values["loss"], values.get("retain_loss") or None)[1]
    refused = {
        "--scoring jvp": values["scoring"] == "jvp",
        f"--curvature {values['curvature']}": values["curvature"] in _NEED_ALL_OF_PHI,
        "--merge": values.get("merge"),
        "--proxy-model": values.get("proxy_model"),
        "--proxy-layers": values.get("proxy_layers", "100%") != "100%",
        f"--quantize {values['quantize']}": values["quantize"] != "none",
    }
    for flag, given in refused.items():
        if given:
            raise UserError(f"{flag} does not go with sharded parameters (FSDP): launch without FSDP")
    if values["lora_rank"] == 0 and (values.get("kl_budget") or term == "kl"):
        raise UserError(
            "KL needs a second, frozen copy of a model that is trained in full, and a sharded one (FSDP) has "
            "none: give --lora-rank above 0, or --kl-budget 0 and no kl term"
        )
