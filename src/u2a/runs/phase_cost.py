"""What a phase of a run costs: seconds, and peak memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class PhaseCost:
    """Seconds (wall clock) and peak memory (bytes: device memory on an accelerator, else resident set)."""

    name: str
    seconds: float = 0.0
    peak_bytes: int = 0


@contextmanager
def peak_memory(interval: float = 0.05) -> Iterator[Callable[[], int]]:
    """Peak bytes in use within the block: exact on CUDA, sampled every `interval` seconds on the CPU."""
    import psutil
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield torch.cuda.max_memory_allocated
        return
    process, done, highest = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while True:
            highest[0] = max(highest[0], process.memory_info().rss)
            if done.wait(interval):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: highest[0]
    finally:
        done.set()
        watcher.join()
