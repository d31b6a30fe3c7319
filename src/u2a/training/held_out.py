"""Held-out negatives of a training run: the unlearning term of its objective, over other rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import EvalLoopOutput

from u2a.passes.dataset import dataset_logprobs, refuse_non_finite
from u2a.training.rows import Negatives, prepared_negatives

if TYPE_CHECKING:
    from u2a.data.render import Renderer


def held_out(given: Any, renderer: Renderer) -> Any:
    """What a user gave as `eval_dataset`, ready to be measured: one data set, several by name, or none."""
    if isinstance(given, dict):
        return {
            name: prepared_negatives(rows, renderer, f"eval_dataset[{name!r}]")
            for name, rows in given.items()
        }
    if given is None or isinstance(given, Negatives):
        return given
    return prepared_negatives(given, renderer, "eval_dataset")


def held_out_loss(trainer: Any, negatives: Negatives, prefix: str, pad_token_id: int) -> EvalLoopOutput:
    """(1/Ω)·Σ ω_i·ℓ_i as the metric `PREFIX_loss`, and ℓ_i (N,) in float64 as the predictions.

    The trainer's model is as it is, without dropout. Several processes share the rows and all get all of it;
    padding and batches change nothing.

    Raises:
        GuardStop: a log-prob or a loss is not finite; names the row.
    """
    rows, args = negatives.rows, trainer.args
    max_tokens = args.per_device_eval_batch_size * args.max_length
    with trainer.accelerator.autocast():  # as it is trained
        s = dataset_logprobs(trainer.model, rows, max_tokens=max_tokens, pad_token_id=pad_token_id).double()
    reference = torch.zeros_like(s) if negatives.reference is None else negatives.reference.to(s)
    losses = trainer.loss(s, reference, torch.tensor(rows["n_tokens"]).to(s))
    refuse_non_finite(losses, rows, "unlearning loss")
    weights = torch.as_tensor(negatives.weights).to(losses)
    mean = float((weights * losses).sum() / weights.sum())
    return EvalLoopOutput(losses.numpy(), None, {f"{prefix}_loss": mean}, len(rows))
