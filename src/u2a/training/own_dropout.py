"""The dropout that a model itself has, off while it is unlearned.

s_ref, J, U and every reference are measured without: with it s would differ from s_ref at φ₀ already, and the
KL term would not be 0 there. The dropout of an adapter is another matter: who wants it has asked for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from u2a.logprobs import unwrapped


@contextmanager
def own_dropout_off(model: nn.Module) -> Iterator[None]:
    """Within, the model has no dropout but an adapter's, also in training mode; after it, what it had.

    These are the rates of dropout modules, and those that layers or their configuration hold and hand to a
    function, as Llama's `attention_dropout`, which TRL's `disable_dropout_in_model` leaves on.
    """
    changed = []
    try:
        for holder in _holders(unwrapped(model)):
            for name in _rates(holder):
                changed.append((holder, name, vars(holder)[name]))
                setattr(holder, name, 0.0)
        yield
    finally:
        for holder, name, rate in reversed(changed):
            setattr(holder, name, rate)


def _holders(module: nn.Module) -> Iterator[Any]:
    """The modules of a model and their configurations, without what an adapter's layers add to it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(module, BaseTunerLayer):
        yield from _holders(module.get_base_layer())
        return
    yield module
    if "config" in vars(module):
        yield module.config
    for child in module.children():
        yield from _holders(child)


def _rates(holder: Any) -> list[str]:
    """Attributes that are rates of dropout above 0: `p` of a dropout module, `attn_pdrop`, `layerdrop`."""
    is_module = isinstance(holder, nn.modules.dropout._DropoutNd)
    return [
        name
        for name, value in vars(holder).items()
        if isinstance(value, float) and value > 0 and ("drop" in name or (is_module and name == "p"))
    ]
