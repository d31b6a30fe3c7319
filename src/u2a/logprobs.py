"""Log-probabilities of responses: the only place that shifts labels and masks tokens.

The output layer is the widest matrix of a language model, and only hidden states that predict a response
token need it. So a hook narrows what reaches that layer; every model family keeps its own scaling or
soft-capping of the logits behind it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from u2a.data.collate import length_sorted_batches
from u2a.types import IGNORE, Batch, GuardStop

if TYPE_CHECKING:
    from datasets import Dataset

Progress = Callable[[int], None]
"""Called with the number of rows that have just been done."""


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


@contextmanager
def _output_layer_sees(model: nn.Module, predicts: Tensor) -> Iterator[None]:
    """Within, the output layer gets only the hidden states where `predicts` (B, T) is true, as (1, R, H)."""

    def narrow(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = args[0]
        if hidden.shape[:2] != predicts.shape:
            return None
        return (hidden[predicts].unsqueeze(0), *args[1:])

    layer = unwrapped(model).get_output_embeddings()
    if layer is None:
        yield
        return
    handle = layer.register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()


def response_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the R response tokens of a batch, and nowhere else.

    Returns:
        logits (R, V), in float32 at least; targets (R,), the response tokens themselves; example (R,), the
        row of the batch each token belongs to. Tokens are in batch order, then in text order.
    """
    targets_all = batch.labels[:, 1:]
    is_target = targets_all != IGNORE
    predicts = nn.functional.pad(is_target, (0, 1))  # (B, T): position t predicts token t + 1
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    accepted = inspect.signature(unwrapped(model).forward).parameters
    if "position_ids" in accepted:
        inputs["position_ids"] = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    with _output_layer_sees(model, predicts):
        logits = model(**inputs).logits
    if logits.shape[:2] == predicts.shape:  # this model's output layer does not take (B, T, H)
        logits = logits[predicts].unsqueeze(0)
    logits = logits[0]
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return logits, targets_all[is_target], is_target.nonzero()[:, 0]


def token_logprobs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-prob of every response token (R,), and the row of the batch it belongs to (R,)."""
    logits, targets, example = response_logits(model, batch)
    return -nn.functional.cross_entropy(logits, targets, reduction="none"), example


def response_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """s_i = log π(y_i | x_i) in nats, summed over the response tokens: shape (B,), differentiable."""
    values, example = token_logprobs(model, batch)
    return values.new_zeros(batch.labels.shape[0]).index_add(0, example, values)


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


def dataset_logprobs(
    model: nn.Module,
    texts: Dataset,
    *,
    max_tokens: int,
    pad_token_id: int,
    progress: Progress | None = None,
) -> Tensor:
    """s_i of every row of a tokenised data set, without gradient: (N,), in the data set's order, on the CPU.

    Args:
        texts: as `tokenize_rows` makes it.
        max_tokens: most padded tokens of one forward pass.

    Raises:
        GuardStop: a log-prob is not finite; the message names the row.
    """
    device = next(model.parameters()).device
    out: Tensor | None = None
    with evaluating(model), torch.no_grad():
        for batch in length_sorted_batches(texts, max_tokens=max_tokens, pad_token_id=pad_token_id):
            values = response_logprobs(model, batch.to(device)).cpu()
            if out is None:
                out = values.new_full((len(texts),), float("nan"))
            out[batch.index] = values
            if progress:
                progress(len(values))
    if out is None:
        raise ValueError("no rows to score")
    refuse_non_finite(out, texts, "log-prob")
    return out


def refuse_non_finite(values: Tensor, texts: Dataset, what: str) -> None:
    """Stops the run when one of `values` (N,) is NaN or infinite.

    Raises:
        GuardStop: names the first such row of `texts`.
    """
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        first = int(bad[0])
        row = texts[first].get("row", first)
        raise GuardStop(
            f"the {what} of row {row} is {float(values[first])} ({len(bad)} of {len(values)} rows are not "
            "finite). Look at that row; if it is sound, try --dtype float32."
        )
