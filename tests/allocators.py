"""An allocator that gives up above so many tokens: what a full GPU does, on any machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import pytest
    from torch import nn

CPU = "[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried to"


class Allocator:
    """Patches a model so that a forward pass over more than `most` padded tokens fails, and counts.

    With `backward`, a pass that is to go backward fails while it does, when some gradients are there already.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, model: nn.Module, most: int, *, backward: bool = False
    ) -> None:
        self.sizes: list[int] = []
        self.failures = 0
        embedding = model.get_input_embeddings()
        real = embedding.forward

        def forward(ids: Any) -> Any:
            self.sizes.append(ids.numel())
            if ids.numel() > most and not backward:
                self.fail()
            return real(ids)

        def on_the_way_back(_gradient: Any) -> None:
            largest = max(self.sizes, default=0)
            self.sizes.clear()
            if largest > most:
                self.fail()

        monkeypatch.setattr(embedding, "forward", forward)
        if backward:  # the first layer comes last, when the other gradients are there
            next(p for p in model.parameters() if p.requires_grad).register_hook(on_the_way_back)

    def fail(self) -> None:
        """Gives up, by turns in the words of CUDA, the CPU and Python."""
        self.failures += 1
        kinds = (torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError(CPU), MemoryError())
        raise kinds[self.failures % 3]
