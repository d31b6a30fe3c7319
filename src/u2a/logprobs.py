"""Log-probabilities of responses: the only place that shifts labels and masks tokens.

The output layer is the widest matrix of a language model, and only hidden states that predict a response
token need it. So a hook narrows what reaches that layer; every model family keeps its own scaling or
soft-capping of the logits behind it.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from u2a import processes
from u2a.data import packing
from u2a.data.collate import length_sorted_batches, row_name
from u2a.memory import Attempt, fitting, working
from u2a.types import IGNORE, Batch, GuardStop, PackedBatch

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("u2a")

_WORTH_PACKING = 0.9
"""Share of the plain layout's tokens from which on packing is worth its wider attention."""

Progress = Callable[[int], None]
"""Called with the number of rows that have just been done."""

Task = Callable[[str, int], AbstractContextManager[Progress | None]]
"""Shows one piece of work: called with its name and number of rows, gives what to call as rows are done."""


def silent(_name: str, _total: int) -> AbstractContextManager[None]:
    """A `Task` that shows nothing."""
    return nullcontext()


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
    """As `text_batches`, each to be worked on in a block that may run out of memory (`u2a.memory`).

    Once memory has run out, prompts are not shared any more: rows of several texts can be made no shorter
    than one text needs. `deal`: to the processes, as in `u2a.memory.fitting`.
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
