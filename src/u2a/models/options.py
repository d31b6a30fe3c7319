"""Options of `load_policy`, checked against this machine: device, number format, 4 bits, LoRA's targets."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from u2a.models.source import ModelSource
from u2a.types import UserError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def check_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has one of its kind and it is the one that this process trains on.

    Raises:
        UserError: not the name of a device, there is none of its kind here, or it is another process's card.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device}: {error}") from error
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kinds = ["cpu"] if here is None else ["cpu", here.type]
    if found.type not in kinds:
        raise UserError(f"--device {device}: there is none here; this machine has {', '.join(kinds)}")
    if found.type != "cpu" and found.index not in (None, int(os.environ.get("LOCAL_RANK", 0))):
        raise UserError(  # the trainer of transformers would move the model to the process's own
            f"--device {device}: pick the card by CUDA_VISIBLE_DEVICES and take --device {found.type}"
        )
    return found


def device_of(device: str | torch.device | None) -> torch.device:
    """The device that was asked for; by default the accelerator of this process, else the CPU.

    Apple's `mps` is taken only when it is asked for: sums are in float64, which it does not have.

    Raises:
        UserError: as `check_device`.
    """
    if device is not None:
        return check_device(device)
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    name = kind.type if kind and kind.type != "mps" else "cpu"
    rank = os.environ.get("LOCAL_RANK")  # set by torchrun and accelerate: one device a process
    return torch.device(name) if rank is None or name == "cpu" else torch.device(name, int(rank))


def dtype_of(dtype: str, device: torch.device) -> torch.dtype:
    """The format that was asked for; `auto` is bfloat16 where the device computes in it, else float32."""
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type == "cuda":  # emulated bfloat16 is slower than float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    supported = getattr(getattr(torch, device.type, None), "is_bf16_supported", lambda: False)
    return torch.bfloat16 if device.type != "cpu" and supported() else torch.float32


def quantization_of(
    quantize: str, source: ModelSource, lora_rank: int, device: torch.device, dtype: torch.dtype
) -> BitsAndBytesConfig:
    """NF4 with double quantisation, computing in `dtype`.

    Raises:
        UserError: another kind, or it cannot be had here or for this model.
    """
    if quantize != "4bit":
        raise UserError(f"--quantize {quantize}: take one of none, 4bit")
    if lora_rank == 0:
        raise UserError("--quantize 4bit trains an adapter on a frozen base: it needs --lora-rank above 0")
    if source.kind in ("adapter", "gguf"):
        raise UserError(
            f"--quantize 4bit cannot load {source.name} ({source.kind}): save it as safetensors first"
        )
    if device.type == "cpu":
        raise UserError("--quantize 4bit needs an accelerator, and there is none here: use --quantize none")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--quantize 4bit needs bitsandbytes: pip install 'u2a[qlora]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def targets_of(model: nn.Module, targets: str) -> str | list[str]:
    """`all-linear`, or the given names, each of which ends the name of some linear layer."""
    if targets == "all-linear":
        return targets
    names = [name.strip() for name in targets.split(",") if name.strip()]
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    unknown = [t for t in names if not any(n == t or n.endswith(f".{t}") for n in linear)]
    if unknown or not names:
        known = sorted({n.rpartition(".")[2] for n in linear})
        raise UserError(
            f"--lora-targets {targets}: no linear layer is named {', '.join(unknown) or 'that'}; "
            f"this model has {', '.join(known)}"
        )
    return names
