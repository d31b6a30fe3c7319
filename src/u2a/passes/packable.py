"""Whether a model's log-probs of texts in one row behind a shared prompt are those of each text alone."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from u2a import processes
from u2a.data import packing
from u2a.data.collate import length_sorted_batches
from u2a.logprobs import evaluating, response_logprobs, unwrapped

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("u2a")


def can_pack(model: nn.Module, texts: Dataset, plan: packing.Plan, pad_token_id: int) -> bool:
    """Whether the model's log-probs of packed texts are those of the texts one by one: tried out on a few, on
    the widest row and on the largest group.

    Recurrent layers, positions other than the ones given, layers that see a part of a row, and kernels
    without masks would all give other numbers, or an error. The finding is kept with the model, until rows
    are wider or groups larger.
    """
    base = unwrapped(model)
    attention = getattr(base.config, "_attn_implementation", None)
    if attention not in ("sdpa", "eager") or plan.longest > _window(base.config):
        return False
    # kernel -> tokens of the widest row and of the largest group so far; none: it cannot
    known: dict[str, tuple[int, int] | None] = base.__dict__.setdefault("_u2a_can_pack", {})
    if attention not in known and not plan.sharing:
        return False
    tried = known.get(attention, (0, 0))
    if tried is None:
        return False
    size = tuple(sum(group.size for group in part) for part in (plan.widest, plan.largest))
    if size[0] > tried[0] or size[1] > tried[1]:
        trials = [[i for group in part for i in group.texts] for part in (plan.widest, plan.largest)]
        if tried == (0, 0):
            trials.insert(0, [i for group in plan.sharing[:2] for i in group.texts[:3]])
        # one answer for all, trial by trial: a sharded model's passes need every process
        agrees = all(
            processes.from_main(_packing_agrees(model, texts.select(few), pad_token_id)) for few in trials
        )
        known[attention] = (max(size[0], tried[0]), max(size[1], tried[1])) if agrees else None
    return known[attention] is not None


def _window(config: Any) -> float:
    """Tokens of a text that every layer sees; a mask of our own takes the place of the layers' windows."""
    names = ("sliding_window", "window_size", "local_attention", "attention_chunk_size")
    found = [getattr(each, name, None) for each in (config, config.get_text_config()) for name in names]
    return min((size for size in found if isinstance(size, int)), default=math.inf)


def _packing_agrees(model: nn.Module, few: Dataset, pad_token_id: int) -> bool:
    """Whether log-probs of `few`, packed, are those of each alone: of the first and of the last in the row,
    which are the nearest to its beginning and the farthest from it."""
    device = next(model.parameters()).device
    plan = packing.plan(few, max_tokens=1 << 30)
    batch = next(packing.packed_batches(few, plan, pad_token_id=pad_token_id))
    places = sorted({*range(len(batch.index))[:3], *range(len(batch.index))[-3:]})
    rows = few.select(batch.index[places].tolist())
    with evaluating(model), torch.no_grad():
        try:
            found = response_logprobs(model, batch.to(device)).cpu()[places]
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            log.info("texts with the same prompt are computed one by one: %s", error)
            return False
        expected = torch.empty_like(found)
        for alone in length_sorted_batches(rows, max_tokens=1, pad_token_id=pad_token_id):
            expected[alone.index] = response_logprobs(model, alone.to(device)).cpu()
    # a token that sees what it must not is off by about a nat; rounding is far below that in any format
    off = (found - expected).abs() / torch.tensor(rows["n_tokens"])
    return float(off.max()) <= max(1e-3, 16 * torch.finfo(next(model.parameters()).dtype).eps)
