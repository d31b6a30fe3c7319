"""A share of the layers, drawn by a seed, in the place of all: directions, curvature and scores are there."""

from __future__ import annotations

import math
import re

import numpy as np
from peft.tuners.lora import LoraLayer

from u2a.models.policy import Policy
from u2a.types import UserError


def layer_of(name: str) -> int | None:
    """The number of the layer that a module or parameter of this name is in, None outside of all layers."""
    found = re.search(r"\.(\d+)\.", f".{name}.")
    return int(found[1]) if found else None


def keep_layers(policy: Policy, share: float, seed: int) -> list[int]:
    """Leaves φ only in ⌈share·L⌉ of the L layers: the adapters of the others are taken off, and in full
    fine-tuning the other parameters are frozen. Changes nothing that the model computes as long as it is the
    original one; the adapters that stay are those of the whole run.

    Returns:
        the layers that stay.

    Raises:
        UserError: no parameter of φ is in a numbered layer.
    """
    numbers = {layer_of(name) for name in policy.trainable()} - {None}
    layers = sorted(number for number in numbers if number is not None)
    if not layers:
        raise UserError("--proxy-layers: no trained parameter of this model is in a numbered layer")
    count = math.ceil(share * len(layers) - 1e-9)
    kept = sorted(np.random.default_rng(seed).choice(layers, count, replace=False).tolist())
    if not policy.has_adapter:
        for name, parameter in policy.model.named_parameters():
            parameter.requires_grad_(layer_of(name) in kept)
        return kept
    for name, module in list(policy.model.named_modules()):
        if isinstance(module, LoraLayer) and layer_of(name) not in kept:
            # frozen adapters would not do: PEFT trains them again whenever adapters were off for a while
            parent, _, own = name.rpartition(".")
            setattr(policy.model.get_submodule(parent), own, module.get_base_layer())
    return kept
