"""Weights rounded to few bits for a while: what weight-only quantisation does to a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

GROUPS: dict[int, int | None] = {8: None, 4: 64}
"""Bits -> weights along the input that share a scale; None = all that make up one output."""


@contextmanager
def rounded(model: Any, bits: int) -> Iterator[None]:
    """Within, the weights of the linear layers are rounded; the very tensors of before are put back after it,
    so they are in memory twice.

    Args:
        bits: one of `GROUPS`.
    """
    kept: dict[nn.Parameter, Tensor] = {}
    try:
        for weight, by_input in linear_weights(model).items():
            kept[weight] = weight.data
            matrix = weight.data.T if by_input else weight.data
            nearest = round_to_nearest(matrix, bits, GROUPS[bits])
            weight.data = nearest.T if by_input else nearest
        yield
    finally:
        for weight, data in kept.items():
            weight.data = data


def linear_weights(model: Any) -> dict[nn.Parameter, bool]:
    """Weights of the linear layers, each once, but for the output head and what is tied to the embeddings
    -> whether it is laid out (in, out), as GPT-2's Conv1D is, and not (out, in)."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings().weight
    layers: list[Any] = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    return {
        layer.weight: isinstance(layer, Conv1D)
        for layer in layers
        if layer is not head and layer.weight is not embeddings
    }


def round_to_nearest(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """The nearest of the 2^bits − 1 multiples of a scale that lie symmetric about 0: (out, in) -> (out, in).

    The scale of a group is its largest magnitude over 2^(bits−1) − 1, so that the largest weight stays what
    it is. Halves go to the even multiple. The result has the weight's own number format.

    Args:
        group: weights along the input that share a scale, the last ones of an output perhaps fewer; None =
            all of an output.
    """
    outputs, inputs = weight.shape
    size = group or inputs
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
    parts = nn.functional.pad(exact, (0, -inputs % size)).reshape(outputs, -1, size)
    scale = parts.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    multiples = (parts / scale.where(scale > 0, 1)).round()
    return (multiples * scale).reshape(outputs, -1)[:, :inputs].to(weight.dtype)
