"""Log-probabilities of responses: the only place that shifts labels and masks tokens.

The output layer is the widest matrix of a language model, and only hidden states that predict a response
token need it. So a hook narrows what reaches that layer; every model family keeps its own scaling or
soft-capping of the logits behind it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from u2a.types import IGNORE, Batch, PackedBatch


def unwrapped(model: Any) -> Any:
    """The transformers model under PEFT, DDP and compile wrappers."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "module") and isinstance(model.module, nn.Module):
            model = model.module
        else:
            return model


def forward_precision(model: Any) -> float:
    """Relative precision of a forward pass: that of the coarsest format in it, and never finer than float32,
    in which families compute norms, rotary angles and softmax whatever the weights are. A base in 4 bits
    computes in a format of its own, that none of its parameters has."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    quantised = getattr(unwrapped(model).config, "quantization_config", None)
    kinds |= {getattr(quantised, "bnb_4bit_compute_dtype", torch.float32), torch.float32}
    return max(torch.finfo(kind).eps for kind in kinds)


@contextmanager
def _output_layer_sees(model: nn.Module, shape: torch.Size, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Within, the output layer gets, of hidden states (B, T, H), only those at R places, as (1, R, H)."""

    def narrow(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = args[0]
        if hidden.shape[:2] != shape:
            return None
        return (hidden[rows, columns].unsqueeze(0), *args[1:])

    layer = unwrapped(model).get_output_embeddings()
    if layer is None:
        yield
        return
    handle = layer.register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()


def response_logits(model: nn.Module, batch: Batch | PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the R response tokens of a batch, and nowhere else.

    Returns:
        logits (R, V), in float32 at least; targets (R,), the response tokens themselves; example (R,), the
        text of the batch each token belongs to. Tokens are in batch order, then in text order.
    """
    accepted = inspect.signature(unwrapped(model).forward).parameters
    inputs: dict[str, Any] = {"input_ids": batch.input_ids}
    if isinstance(batch, PackedBatch):
        rows, columns, targets, example = batch.rows, batch.columns, batch.targets, batch.example
        inputs["attention_mask"] = _additive(batch.mask, next(model.parameters()).dtype)
        inputs["position_ids"] = batch.position_ids
    else:
        is_target = batch.labels[:, 1:] != IGNORE
        rows, columns = is_target.nonzero(as_tuple=True)  # place t predicts token t + 1
        targets, example = batch.labels[:, 1:][is_target], rows
        inputs["attention_mask"] = batch.attention_mask
        if "position_ids" in accepted:
            inputs["position_ids"] = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    with _output_layer_sees(model, batch.input_ids.shape, rows, columns):
        logits = model(**inputs).logits
    if logits.shape[:2] == batch.input_ids.shape:  # this model's output layer does not take (B, T, H)
        logits = logits[rows, columns].unsqueeze(0)
    logits = logits[0]
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return logits, targets, example


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a token sees another, the least number elsewhere: what every kernel with a mask takes."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def token_logprobs(model: nn.Module, batch: Batch | PackedBatch) -> tuple[Tensor, Tensor]:
    """Log-prob of every response token (R,), and the text of the batch it belongs to (R,)."""
    logits, targets, example = response_logits(model, batch)
    return -nn.functional.cross_entropy(logits, targets, reduction="none"), example


def response_logprobs(model: nn.Module, batch: Batch | PackedBatch) -> Tensor:
    """s_i = log π(y_i | x_i) in nats, summed over the response tokens: (N,) for N texts, differentiable."""
    values, example = token_logprobs(model, batch)
    return values.new_zeros(len(batch.index)).index_add(0, example, values)


def response_lengths(batch: Batch) -> Tensor:
    """|y_i|, the number of response tokens of each example: shape (B,), int64."""
    return (batch.labels[:, 1:] != IGNORE).sum(-1)


def kl_per_token(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(π_φ ‖ π_ref) in nats at each of R positions, exact over the vocabulary: (R, V), (R, V) -> (R,)."""
    policy = policy_logits.log_softmax(-1)
    return (policy.exp() * (policy - reference_logits.log_softmax(-1))).sum(-1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off within; the former mode is restored after."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
