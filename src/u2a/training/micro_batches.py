"""A micro-batch in parts: where memory runs out in training, its texts go through a few at a time.

Losses of texts are summed, never averaged within a batch, so the gradients of the parts add up to the
micro-batch's: the step, its weights and the learning rate stay what they were. (Trainers that look for a
batch size that fits take other steps instead.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from u2a.passes.memory import WHAT_TO_DO, is_out_of_memory, largest, lower
from u2a.types import OutOfMemory

Inputs = dict[str, Any]

TRAINING = "training"
_SMALL = 4
"""Gradients of at most one fourth of all parameters are held twice for the time of a micro-batch."""
_BATCHES = {"retain": ("retain_tokens", "retain_counts"), "pairs": ("pairs_of_step", "pairs_count")}
"""Texts beside the negatives; what their sum is divided by, and whether it counts in this process."""


def texts_in(inputs: Inputs) -> int:
    """How many texts a micro-batch's graph holds."""
    rows = len(inputs["input_ids"]) if "input_ids" in inputs else 0
    return rows + sum(len(inputs[name]["input_ids"]) for name in _BATCHES if name in inputs)


def parts(inputs: Inputs, most: int) -> Iterator[Inputs]:
    """The micro-batch as it is where it has at most that many texts; else cut into parts of one kind, whose
    losses add up to its own. A pair is two texts that stay together. The first part has the l2 term."""
    if texts_in(inputs) <= most:
        yield inputs
        return
    first = True
    own = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels", "index")}
    for begin in range(0, len(own["input_ids"]), most):
        yield {**_rows(own, slice(begin, begin + most)), "l2": first}
        first = False
    for name, scales in _BATCHES.items():
        if name not in inputs:
            continue
        batch, pair = inputs[name], name == "pairs"
        count = len(batch["input_ids"]) // (2 if pair else 1)
        size = max(1, most // 2) if pair else most
        for begin in range(0, count, size):
            end = min(begin + size, count)
            rows = [*range(begin, end), *(range(count + begin, count + end) if pair else ())]
            yield {name: _rows(batch, rows), **{scale: inputs[scale] for scale in scales}, "l2": False}


def _rows(batch: dict[str, Tensor], rows: slice | list[int]) -> dict[str, Tensor]:
    """Some rows of a padded batch (padding on the right), without the columns that are padding for all."""
    chosen = {name: value[rows] for name, value in batch.items()}
    width = int(chosen["attention_mask"].sum(-1).max())
    return {name: value if name == "index" else value[:, :width] for name, value in chosen.items()}


def in_parts(
    model: nn.Module, inputs: Inputs, backward: Callable[[Inputs], Tensor], name: Callable[[Inputs], str]
) -> Tensor:
    """Adds a micro-batch's gradients to the model's; returns its loss.

    Args:
        backward: the forward and backward pass of a part: adds its gradients, returns its loss.
        name: what messages call the only text of a part.

    Raises:
        OutOfMemory: one text alone does not fit; or gradients of earlier micro-batches would be lost.
    """
    before = _Before(model)
    while True:
        most = largest(model, TRAINING, texts_in(inputs))
        part: Inputs = {}
        try:
            losses = []
            for part in parts(inputs, most):
                losses.append(backward(part))
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        before.forget_since()
        if most == 1 or texts_in(inputs) == 1:
            raise OutOfMemory(f"out of memory in training with {name(part)} alone. {WHAT_TO_DO}")
        lower(model, TRAINING, most // 2, "texts at once, as many as before in a step")
    before.add_again()
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


class _Before:
    """The gradients before a micro-batch, kept apart, so that one that broke off can be undone."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.held = [(p, p.grad) for p in model.parameters() if p.grad is not None]
        whole = sum(p.numel() for p in model.parameters())
        self.apart = _SMALL * sum(p.numel() for p, _ in self.held) <= whole
        if self.apart:
            for p, _ in self.held:
                p.grad = None

    def forget_since(self) -> None:
        """Drops what the micro-batch has added so far."""
        if not self.apart:
            raise OutOfMemory(
                "out of memory in the middle of an optimiser step of full fine-tuning, where gradients of "
                "its earlier micro-batches cannot be told from this one's. Halve --batch-size and double "
                "--gradient-accumulation: the steps stay the same"
            )
        for p in self.model.parameters():
            p.grad = None

    def add_again(self) -> None:
        """Adds the micro-batch's gradients to those before it."""
        if not self.apart:
            return
        for p, grad in self.held:
            if p.grad is not None and grad is not None:
                grad.add_(p.grad)
            p.grad = grad
