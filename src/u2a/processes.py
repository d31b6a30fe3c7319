"""Several processes that do one run: which one am I, deal work out, put it together, stop together.

`accelerate launch` or `torchrun` starts the same command on every device. Each process reads the same rows
and takes the same decisions from the same numbers; passes over texts are shared out, and the first process
alone writes and speaks. What exchanges values or stops together is collective: all processes call it at the
same place, or they wait for each other for ever. With one process it costs nothing and changes nothing.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from u2a.types import GuardStop, OutOfMemory, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Value = TypeVar("Value")

_PATIENCE = timedelta(hours=3)
"""How long processes wait for one that works alone, on a report, say."""
_KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (UserError, GuardStop, OutOfMemory)}
"""Errors that stay what they are on their way to other processes."""


def _distributed() -> Any:
    """`torch.distributed` where processes have been joined, else None; nothing is imported for it."""
    torch = sys.modules.get("torch")
    distributed = getattr(torch, "distributed", None)
    return distributed if distributed is not None and distributed.is_initialized() else None


def count() -> int:
    """How many processes there are: 1 as long as they have not been joined."""
    distributed = _distributed()
    return 1 if distributed is None else distributed.get_world_size()


def index() -> int:
    """Which of them this one is, from 0."""
    distributed = _distributed()
    return 0 if distributed is None else distributed.get_rank()


def is_main() -> bool:
    """Whether this is the process that writes files, logs and shows progress."""
    return index() == 0


def launched() -> bool:
    """Whether a launcher started several processes."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE") or 1) > 1


def is_first() -> bool:
    """Whether this is the main process, also before they have been joined."""
    return is_main() if count() > 1 or not launched() else os.environ["RANK"] == "0"


def are_by_deepspeed() -> bool:
    """Whether the launcher's configuration wants DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def refuse_launcher() -> None:
    """Refuses what a launcher asks for and cannot have.

    Raises:
        UserError: DeepSpeed shards the parameters, or there is no accelerator for it.
    """
    if not are_by_deepspeed():
        return
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise UserError(
            "DeepSpeed's ZeRO stage 3 hides the parameters, which scoring moves: take FSDP2, which shards "
            "them as well (examples/accelerate/fsdp2.yaml), or zero_stage: 2"
        )
    if _device_type() == "cpu":
        raise UserError("DeepSpeed needs accelerators: launch with examples/accelerate/ddp.yaml on CPUs")


def speaks(error: BaseException | None = None) -> bool:
    """Whether this process tells people of an error: the one that had it, or the first where all have it, as
    they have what the user can mend, guards and signals (None)."""
    if count() == 1:  # not joined yet, so every process has it
        return is_first()
    elsewhere = getattr(error, "elsewhere", None)
    if elsewhere is not None:
        return not elsewhere
    return is_main() or not (error is None or isinstance(error, (UserError, GuardStop)))


def join(*, cpu: bool = False) -> None:
    """Joins the processes that a launcher started, once; where there is none, nothing happens.

    Args:
        cpu: work on the CPU although there is an accelerator.
    """
    if launched() and _distributed() is None:
        from accelerate import PartialState

        PartialState(cpu=cpu or _device_type() == "cpu", timeout=_PATIENCE)


def _device_type() -> str:
    import torch

    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if kind is None else kind.type


def _device() -> torch.device:
    """Where tensors must be for this process group to exchange them."""
    import torch

    return torch.device("cpu" if "gloo" in _distributed().get_backend() else _device_type())


# -- exchanging values --------------------------------------------------------------------------------------


def gathered(value: Value) -> list[Value]:
    """The value of every process, in their order."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    _distributed().all_gather_object(found, value)
    return found


def from_main(value: Value) -> Value:
    """The first process's value, everywhere."""
    if count() == 1:
        return value
    held = [value if is_main() else None]
    _distributed().broadcast_object_list(held, src=0)
    return held[0]  # type: ignore[return-value]


def any_of(flag: bool) -> bool:
    """Whether it is so in some process."""
    return flag if count() == 1 else any(gathered(flag))


def wait() -> None:
    """Until all processes are here."""
    gathered(None)


def summed(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each tensor's sum over the processes, on its own device and in its own dtype."""
    if count() == 1:
        return list(tensors)
    found = []
    for tensor in tensors:
        total = tensor.to(_device(), copy=True).contiguous()
        _distributed().all_reduce(total)
        found.append(total.to(tensor.device))
    return found


def put_together(values: Tensor, own: Tensor) -> Tensor:
    """Values (…, N), of which every process has found those of its own rows (N,), in the order of the rows.

    Each number comes out bit for bit.

    Raises:
        RuntimeError: some row was done by nobody, or twice.
    """
    if count() == 1:
        return values
    total, times = summed([values.masked_fill(~own, 0.0), own.long()])
    if not bool((times == 1).all()):
        raise RuntimeError(f"rows were not done once each: {times.tolist()[:20]} times")
    return total


# -- stopping together --------------------------------------------------------------------------------------


@contextmanager
def as_one() -> Iterator[None]:
    """What is done within, each process may do apart from the others; an error of one is raised in all.

    Raises:
        UserError, GuardStop, OutOfMemory, RuntimeError: that of the first process that has one; its
            attribute `elsewhere` says in which processes it is not their own.
    """
    if count() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    stop_together(error)


def stop_together(error: Exception | None) -> None:
    """Raises the error of the first process that has one, in all of them; returns where none has."""
    if count() == 1:
        if error is not None:
            raise error
        return
    told = gathered(None if error is None else _told(error))
    first = next((number for number, each in enumerate(told) if each is not None), None)
    if first is None:
        return
    if first == index() and error is not None:
        error.elsewhere = False  # type: ignore[attr-defined]
        raise error
    kind, message = told[first] or ("", "")
    raised = _KINDS.get(kind, RuntimeError)(message)
    raised.elsewhere = True  # type: ignore[attr-defined]
    raise raised


def _told(error: Exception) -> tuple[str, str]:
    """An error as others can raise it: its kind and message, with the trace where it is a fault."""
    for name, kind in _KINDS.items():
        if isinstance(error, kind):
            return name, str(error)
    return "", f"process {index()} failed:\n{''.join(traceback.format_exception(error))}"
