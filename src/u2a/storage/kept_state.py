"""What a run keeps to go on from: tensors and plain values in one safetensors file, whole and checked.

Tensors keep their dtype, floats their bits, and nothing is a pickle. A file whose bytes changed is `Damaged`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from u2a.storage.files import whole_file

Tensors = dict[str, Tensor]


class Damaged(Exception):  # noqa: N818 - a finding: the caller has something older, or begins again
    """A kept file is not what was written."""


def write_state(path: Path, tensors: Mapping[str, Tensor], content: Any) -> None:
    """Writes tensors by name and `content`, which JSON can hold, whole."""
    own = _apart(tensors)
    text = json.dumps(content)
    with whole_file(path) as temporary:
        save_file(own, temporary, metadata={"content": text, "sha256": _digest(own, text)})


def _apart(tensors: Mapping[str, Tensor]) -> Tensors:
    """On the CPU, each with memory of its own, which the format asks for; copied only where it must be."""
    own: Tensors = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        place = here.untyped_storage().data_ptr()
        own[name] = here.clone() if place in seen else here
        seen.add(place)
    return own


def read_state(path: Path) -> tuple[Tensors, Any]:
    """The tensors and the content of a file that is there.

    Raises:
        Damaged: it is not what `write_state` wrote.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if about["sha256"] != _digest(tensors, about["content"]):
            raise Damaged(f"{path}: its bytes changed after it was written")
        return tensors, json.loads(about["content"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise Damaged(f"{path}: not a whole file ({error})") from error


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
