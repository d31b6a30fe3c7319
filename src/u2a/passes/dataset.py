"""Passes over a data set: its batches, in the cheaper layout and in the memory there is; its log-probs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2a import processes
from u2a.data import packing
from u2a.data.collate import length_sorted_batches, row_name
from u2a.logprobs import evaluating, response_logprobs
from u2a.passes.memory import Attempt, fitting, working
from u2a.passes.packable import can_pack
from u2a.types import Batch, GuardStop, PackedBatch

if TYPE_CHECKING:
    from datasets import Dataset

_WORTH_PACKING = 0.9
"""Share of the plain layout's tokens from which on packing is worth its wider attention."""

Progress = Callable[[int], None]
"""Called with the number of rows that have just been done."""

Task = Callable[[str, int], AbstractContextManager[Progress | None]]
"""Shows one piece of work: called with its name and number of rows, gives what to call as rows are done."""


def silent(_name: str, _total: int) -> AbstractContextManager[None]:
    """A `Task` that shows nothing."""
    return nullcontext()


def text_batches(
    model: nn.Module, texts: Dataset, *, max_tokens: int, pad_token_id: int, share: bool = True
) -> Iterator[Batch | PackedBatch]:
    """`texts` on the model's device, every text once, in the cheaper of two layouts.

    Where many texts share their prompts, and the model can do it, prompts are computed once
    (`u2a.data.packing`); else length-sorted batches. Log-probs are the same, and so are gradients of any
    weighted sum of them. What needs examples apart (per-example gradients) takes length-sorted batches, and
    so does who passes `share` = False.
    """
    device = next(model.parameters()).device
    plan = packing.plan(texts, max_tokens) if share else None
    batches: Iterator[Batch | PackedBatch]
    if (
        plan is not None
        and plan.tokens <= _WORTH_PACKING * plan.plain
        and can_pack(model, texts, plan, pad_token_id)
    ):
        batches = packing.packed_batches(texts, plan, pad_token_id=pad_token_id)
    else:
        batches = length_sorted_batches(texts, max_tokens=max_tokens, pad_token_id=pad_token_id)
    for batch in batches:
        yield batch.to(device)


def fitting_batches(
    model: nn.Module, texts: Dataset, *, max_tokens: int, pad_token_id: int, kind: str, deal: bool = False
) -> Iterator[Attempt[Batch | PackedBatch]]:
    """As `text_batches`, each to be worked on in a block that may run out of memory (`u2a.passes.memory`).

    Once memory has run out, prompts are not shared any more: rows of several texts can be made no shorter
    than one text needs. `deal`: to the processes, as in `u2a.passes.memory.fitting`.
    """

    def batches(part: Dataset, tokens: int) -> Iterator[Batch | PackedBatch]:
        share = tokens == max_tokens
        return text_batches(model, part, max_tokens=tokens, pad_token_id=pad_token_id, share=share)

    return fitting(model, texts, max_tokens, batches, kind=kind, deal=deal)


def fitting_apart(
    model: nn.Module, texts: Dataset, *, max_tokens: int, pad_token_id: int, kind: str, deal: bool = False
) -> Iterator[Attempt[Batch]]:
    """The same in length-sorted batches, examples apart."""
    device = next(model.parameters()).device

    def batches(part: Dataset, tokens: int) -> Iterator[Batch]:
        for batch in length_sorted_batches(part, max_tokens=tokens, pad_token_id=pad_token_id):
            yield batch.to(device)

    return fitting(model, texts, max_tokens, batches, kind=kind, deal=deal)


def dataset_logprobs(
    model: nn.Module,
    texts: Dataset,
    *,
    max_tokens: int,
    pad_token_id: int,
    progress: Progress | None = None,
) -> Tensor:
    """s_i of every row of a tokenised data set, without gradient: (N,), in the data set's order, on the CPU.

    Several processes share the rows and all get all of s, each number as one process alone would get it.

    Args:
        texts: as `tokenize_rows` makes it.
        max_tokens: most padded tokens of one forward pass; fewer where memory runs out.

    Raises:
        GuardStop: a log-prob is not finite; the message names the row.
        OutOfMemory: one row alone does not fit; the message names it.
    """
    out: Tensor | None = None
    own = torch.zeros(len(texts), dtype=torch.bool)
    sizes = {"max_tokens": max_tokens, "pad_token_id": pad_token_id}
    with evaluating(model), torch.no_grad(), working(model):
        for attempt in fitting_batches(model, texts, **sizes, kind="a forward pass", deal=True):
            with attempt as batch:
                values = response_logprobs(model, batch).cpu()
                if out is None:
                    out = values.new_full((len(texts),), float("nan"))
                if attempt.idle:
                    continue
                out[batch.index.cpu()] = values
                own[batch.index.cpu()] = True
                if progress:
                    progress(attempt.done)
    kinds = [kind for kind in processes.gathered(None if out is None else out.dtype) if kind is not None]
    if not kinds:
        raise ValueError("no rows to score")
    out = torch.zeros(len(texts), dtype=kinds[0]) if out is None else out
    out = processes.put_together(out, own)
    refuse_non_finite(out, texts, "log-prob")
    return out


def refuse_non_finite(values: Tensor, texts: Dataset, what: str) -> None:
    """Stops the run when one of `values` (N,) is NaN or infinite.

    Raises:
        GuardStop: names the first such row of `texts`.
    """
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        name, value = row_name(texts, int(bad[0])), float(values[int(bad[0])])
        raise GuardStop(
            f"the {what} of {name} is {value} ({len(bad)} of {len(values)} rows are not finite). While "
            "unlearning: lower --learning-rate. Else look at that row; if it is sound, try --dtype float32."
        )
