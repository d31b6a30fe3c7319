"""Parameters that are sharded over processes (FSDP2): each holds its part of every tensor."""

from __future__ import annotations

from torch import nn
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only its part of the parameters, and every pass needs all processes."""
    return any(isinstance(p, DTensor) for p in model.parameters())
