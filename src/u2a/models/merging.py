"""An adapter folded into the model it is on, which computes the same afterwards: tied embeddings too."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

_SEEN_TO = (
    "Model has `tie_word_embeddings=True`",
    "Input and output embeddings are no longer tied",
    "fan_in_fan_out",
)


def merged(wrapped: PeftModel) -> Any:
    """The model with its adapter folded in; no copy, so `wrapped` is merged after it.

    Where the head reads the embedding's own weight and an adapter's layer is on one of the two, the head gets
    a copy first: folded into the weight that both read, the layer would change the other one too. Such a
    model is saved with both weights and `tie_word_embeddings: false`.
    """
    tuner: Any = wrapped.base_model
    with quiet_peft():
        untie_adapted(tuner.model)
        return tuner.merge_and_unload()


def untie_adapted(model: Any) -> None:
    """Gives tied weights their own copies where an adapter's layer is on one of them; else does nothing.

    Args:
        model: a transformers model with the layers of an adapter in it.
    """
    tied = [(*_place(model, a), *_place(model, b)) for a, b in model.all_tied_weights_keys.items()]
    if not any(isinstance(layer, BaseTunerLayer) for one, _, other, _ in tied for layer in (one, other)):
        return
    for layer, name, source, its_name in tied:
        weight = getattr(_inside(layer), name)
        if weight is getattr(_inside(source), its_name):
            own = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            setattr(_inside(layer), name, own)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Within, PEFT does not warn of tied embeddings, which `merged` sees to, nor of GPT-2's layers, of which
    some have their weights the other way round: it sets each right itself."""
    with warnings.catch_warnings():
        for said in _SEEN_TO:
            warnings.filterwarnings("ignore", message=said)
        yield


def _place(model: Any, parameter: str) -> tuple[Any, str]:
    """The layer and the name in it of a parameter, by its name before there was an adapter."""
    layer, _, name = parameter.rpartition(".")
    return model.get_submodule(layer), name


def _inside(layer: Any) -> Any:
    """The layer that an adapter's layer is around."""
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
