"""Out of memory: a batch that does not fit is repeated in smaller ones, and later batches stay that small.

Only the size of batches changes: no log-prob, score or gradient depends on it. What fits is kept with the
model for each kind of pass, so that memory runs out once and not in every pass.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from u2a import processes
from u2a.data.collate import row_name, token_counts
from u2a.models.sharding import is_sharded
from u2a.types import Batch, OutOfMemory, PackedBatch

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("u2a")

AnyBatch = TypeVar("AnyBatch", bound=Batch | PackedBatch)
Result = TypeVar("Result")

_fits: weakref.WeakKeyDictionary[nn.Module, dict[str, int]] = weakref.WeakKeyDictionary()

WHAT_TO_DO = (
    "Lower --max-length, take a smaller model or --quantize 4bit, give more memory, or end what else uses it"
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocator gave up: of CUDA and its like, of torch on the CPU, or Python's own."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, Exception) and should_reduce_batch_size(error)


def largest(model: nn.Module, kind: str, asked: int) -> int:
    """`asked`, or what is known to be the most that fits in passes of this kind."""
    return min(asked, _fits.get(model, {}).get(kind, asked))


def lower(model: nn.Module, kind: str, size: int, unit: str = "tokens a batch") -> None:
    """Keeps every later batch of this kind at `size` at most, says so once, and frees what can be freed."""
    _fits.setdefault(model, {})[kind] = size
    clear_device_cache(garbage_collection=True)
    log.warning(
        "out of memory in %s: repeated, from here on at most %d %s; results stay the same", kind, size, unit
    )


@dataclass
class Attempt(Generic[AnyBatch]):
    """One batch to be worked on: `with attempt as batch`. Running out of memory within ends the block, and
    the batch's texts come again in smaller batches; so a block changes nothing outside before its work is
    done.

    `done` is how many texts all processes have done by it. An `idle` one is another process's batch: it is
    worked on because the parameters are sharded, so that every process must take part in every pass, and
    what is found is dropped.
    """

    batch: AnyBatch
    done: int = 0
    idle: bool = False
    failed: bool = field(default=False, init=False)

    def __enter__(self) -> AnyBatch:
        return self.batch

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _where: TracebackType | None
    ) -> bool:
        self.failed = is_out_of_memory(error)
        return self.failed


def fitting(
    model: nn.Module,
    texts: Dataset,
    max_tokens: int,
    batches: Callable[[Dataset, int], Iterator[AnyBatch]],
    *,
    kind: str,
    deal: bool = False,
) -> Iterator[Attempt[AnyBatch]]:
    """`texts` in batches, every text once; where one runs out of memory, again in batches of half its tokens.

    With `deal` the batches, those of a run of one process, are dealt out to the processes: this one gets its
    own, and the caller puts together what all have found. A batch, and so the numbers that it gives, is the
    same for any number of processes.

    Args:
        max_tokens: most padded tokens of a batch, as long as they fit.
        batches: makes batches of some texts with at most that many tokens (but at least one text); `index`
            are positions in what it is given.
        kind: of pass, in a word: each has its own memory to a token.

    Raises:
        OutOfMemory: one text alone does not fit; names its row.
    """
    if deal and processes.count() > 1:
        yield from _dealt(model, texts, max_tokens, batches, kind)
        return
    left = torch.arange(len(texts))
    while len(left):
        tokens = largest(model, kind, max_tokens)
        whole = len(left) == len(texts)
        part = texts if whole else texts.select(left.tolist())
        done = []
        for batch in _made(model, batches(part, tokens), kind, tokens):
            where = left[batch.index.cpu()]
            named = batch if whole else replace(batch, index=where.to(batch.index.device))
            attempt = Attempt(named, len(where))
            yield attempt
            if attempt.failed:
                if len(where) == 1:
                    raise OutOfMemory(_alone(texts, int(where[0]), kind))
                lower(model, kind, max(1, min(tokens, batch.input_ids.numel()) // 2))
                break
            done.append(where)
        left = left[~torch.isin(left, torch.cat(done))] if done else left


def working(model: nn.Module) -> AbstractContextManager[None]:
    """Around a pass that is dealt out: an error of one process is raised in all. Where parameters are sharded
    the others wait within the model, and the launcher ends them."""
    return nullcontext() if is_sharded(model) else processes.as_one()


def _dealt(
    model: nn.Module,
    texts: Dataset,
    max_tokens: int,
    batches: Callable[[Dataset, int], Iterator[AnyBatch]],
    kind: str,
) -> Iterator[Attempt[AnyBatch]]:
    """This process's batches of `texts`; where they do not fit, its texts in smaller ones."""
    sharded, fits = is_sharded(model), largest(model, kind, max_tokens) == max_tokens
    left: list[torch.Tensor] = []
    for batch, idle in _turns(batches(texts, max_tokens)):
        if idle and not sharded:
            continue
        if not fits:
            left.append(batch.index.cpu())
            continue
        attempt = Attempt(batch, len(batch.index) * processes.count(), idle)
        yield attempt
        if attempt.failed:
            if sharded:  # the other processes are in the middle of the same pass
                raise OutOfMemory(
                    f"out of memory in {kind} of a sharded model: lower --score-tokens. {WHAT_TO_DO}"
                )
            fits = False
            lower(model, kind, max(1, min(max_tokens, batch.input_ids.numel()) // 2))
            left.append(batch.index.cpu())
    if left:
        rest = torch.cat(left).sort().values
        for attempt in fitting(model, texts.select(rest.tolist()), max_tokens, batches, kind=kind):
            where = rest[attempt.batch.index.cpu()]
            attempt.batch = replace(attempt.batch, index=where.to(attempt.batch.index.device))
            attempt.done *= processes.count()
            yield attempt


def _turns(batches: Iterator[AnyBatch]) -> Iterator[tuple[AnyBatch, bool]]:
    """Every so manieth batch, so that each is some process's; as many for all of them: one that goes without
    in the last round gets another's, and True."""
    mine: AnyBatch | None = None
    spare: AnyBatch | None = None
    for number, batch in enumerate(batches):
        turn = number % processes.count()
        if turn == 0:
            spare, mine = batch, None
        if turn == processes.index():
            mine = batch
        if turn == processes.count() - 1 and mine is not None:
            yield mine, False
            spare = None
    if spare is not None:
        yield (spare, True) if mine is None else (mine, False)


def _made(model: nn.Module, batches: Iterator[AnyBatch], kind: str, tokens: int) -> Iterator[AnyBatch]:
    """The batches; none any more where making one runs out of memory, at a smaller size from then on."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or tokens == 1:
                raise
            made = False
        else:
            made = True
        if not made:
            lower(model, kind, tokens // 2)
            return
        yield batch


def whole_pass(
    model: nn.Module, texts: Dataset, max_tokens: int, work: Callable[[int], Result], *, kind: str
) -> Result:
    """`work(max_tokens)`, begun again with half the tokens a batch where memory runs out: for passes over a
    few texts whose sums are taken as they go. Longest texts come first, so little is lost.

    Raises:
        OutOfMemory: the longest text alone does not fit; names its row.
    """
    while True:
        tokens = largest(model, kind, max_tokens)
        try:
            return work(tokens)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        counts = token_counts(texts)
        if tokens <= int(counts.max()):  # each text was alone already
            raise OutOfMemory(_alone(texts, int(counts.argmax()), kind))
        lower(model, kind, max(1, min(tokens, int(counts.max()) * len(counts)) // 2))


def _alone(texts: Dataset, position: int, kind: str) -> str:
    tokens = len(texts[position]["input_ids"])
    return (
        f"out of memory in {kind} with {row_name(texts, position)} alone in the batch, {tokens} tokens. "
        f"{WHAT_TO_DO}"
    )
