"""Parameters that are sharded over processes (FSDP2), for a model that no single device holds.

Each process holds its part of every tensor, as a `DTensor`, and for a forward or backward pass the processes
lend each other their parts, layer by layer: so they all make as many passes, at the same time.

accelerate reads the settings and shards, on the CPU too. After that the model owns its placement, and the
trainer takes it as it takes one that transformers shards when it loads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from u2a import processes
from u2a.types import UserError

_ASKED = "ACCELERATE_USE_FSDP"
"""What `accelerate launch` sets where its configuration says `distributed_type: FSDP`."""


def is_asked_for() -> bool:
    """Whether the launcher's configuration wants parameters sharded."""
    return processes.launched() and os.environ.get(_ASKED, "false").lower() == "true"


def shard(model: nn.Module) -> nn.Module:
    """Shards the parameters of a model, in place, as the launcher's configuration says; collective.

    Where only the first process has read the weights (`fsdp_cpu_ram_efficient_loading`), it gives the others
    theirs.

    Args:
        model: on the CPU, or there as shapes alone.

    Raises:
        UserError: the configuration is not one of FSDP2, or checkpoints activations by itself.
    """
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin, fsdp2_prepare_model

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise UserError("the launcher's configuration asks for FSDP 1: set fsdp_version: 2")
    if plugin.activation_checkpointing:
        raise UserError(
            "fsdp_activation_checkpointing: set it to false and give u2a --gradient-checkpointing instead"
        )
    os.environ[_ASKED] = "false"  # nobody is to shard it again
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    accelerator.state.fsdp_plugin = plugin  # which accelerate leaves out on the CPU
    sharded = fsdp2_prepare_model(accelerator, model)
    register_fsdp_forward_method(sharded, "generate")
    sharded._is_fsdp_managed_module = True  # transformers: generation waits for all processes
    return sharded


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only its part of the parameters, and every pass needs all processes."""
    return isinstance(model, FSDPModule)


def at_rest(model: nn.Module) -> None:
    """Gives back what the last pass left whole: some layers keep their parameters for the next one, and would
    not notice that they have changed."""
    for module in model.modules() if is_sharded(model) else ():
        if isinstance(module, FSDPModule):
            module.reshard()


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory: its part, or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process; collective where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def set_whole(parameter: Tensor, value: Tensor) -> None:
    """Sets a parameter, or this process's part of it, from all of its values."""
    if isinstance(parameter, DTensor):
        mesh, places = parameter.device_mesh, parameter.placements
        here = value.to(parameter.device, parameter.dtype)
        value = distribute_tensor(here, mesh, places, src_data_rank=None)
    parameter.copy_(value)


def added_up(parts: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensor | float:
    """Σ of numbers by name, each of which was taken over what this process holds of `like`."""
    apart = [part for name, part in parts.items() if isinstance(like[name], DTensor)]
    total = sum(part for name, part in parts.items() if not isinstance(like[name], DTensor))
    if apart:
        total = total + processes.summed([torch.stack(apart).sum()])[0]
    return total
