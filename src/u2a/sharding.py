"""Parameters that are sharded over processes (FSDP2): each holds its part of every tensor."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only its part of the parameters, and every pass needs all processes."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its shard, or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
