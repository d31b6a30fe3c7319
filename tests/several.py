"""A test's work done by several processes, forked from the test's own and joined by gloo on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

_PATIENCE = timedelta(seconds=120)
"""Processes that lose each other end the test instead of waiting for ever."""


def by_processes(count: int, folder: Path, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(*args)` returns in each of `count` processes, in their order.

    Forked, so that nothing is imported again, and what a test patched stays patched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start_processes(_child, (count, folder, work, args), nprocs=count, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _child(rank: int, count: int, folder: Path, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    from accelerate.state import AcceleratorState

    number = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in number.items()})
    AcceleratorState._reset_state(reset_partial_state=True)  # that of the tests before
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count, timeout=_PATIENCE)
    try:
        torch.save(work(*args), folder / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
