"""A trainer's optimiser, scheduler and random states as safetensors and JSON instead of pickles.

The trainer's own checkpoints hold these files, and `train(resume_from_checkpoint=...)` reads them: a resumed
run makes the very same steps (bit-equal on the CPU).
"""

from __future__ import annotations

import base64
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from u2a.storage.files import write_json
from u2a.storage.kept_state import Tensors, read_state, write_state

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer

OPTIMIZER = "optimizer.safetensors"
PARAMETERS = "parameters.safetensors"
"""φ alone, which `inner_checkpoints` keeps instead of a model's folder."""


@dataclass(frozen=True)
class KeptTraining:
    """What a trainer's hooks for checkpoints do. Each says False where it has nothing to do with it: sharded
    training has its own ways, and older checkpoints their pickles."""

    trainer: Trainer

    @property
    def _plain(self) -> bool:
        return not (self.trainer.is_deepspeed_enabled or self.trainer.is_fsdp_enabled)

    def write_optimizer(self, folder: str) -> bool:
        """The optimiser's and the scheduler's state; only the first process writes."""
        if not self._plain:
            return False
        trainer = self.trainer
        return not trainer.args.should_save or write_optimizer(
            Path(folder), trainer.optimizer, trainer.lr_scheduler
        )

    def read_optimizer(self, folder: str | None) -> bool:
        """Sets what `write_optimizer` wrote."""
        if folder is None or not (Path(folder) / OPTIMIZER).is_file():
            return False
        read_optimizer(Path(folder), self.trainer.optimizer, self.trainer.lr_scheduler)
        return True

    def write_random_state(self, folder: str) -> None:
        """This process's random states."""
        write_random_state(self._random_state(folder))

    def read_random_state(self, folder: str | None) -> bool:
        """Sets what `write_random_state` wrote."""
        if folder is None or not self._random_state(folder).is_file():
            return False
        set_random_state(json.loads(self._random_state(folder).read_text(encoding="utf-8")))
        return True

    def _random_state(self, folder: str) -> Path:
        number = f"_{self.trainer.args.process_index}" if self.trainer.args.world_size > 1 else ""
        return Path(folder) / f"rng_state{number}.json"

    def read_parameters(self, folder: str) -> bool:
        """Sets the trainable parameters to those of `PARAMETERS`, where the folder has it."""
        path = Path(folder) / PARAMETERS
        if not path.is_file():
            return False
        tensors, _ = read_state(path)
        with torch.no_grad():
            for name, p in cast("nn.Module", self.trainer.model).named_parameters():
                if p.requires_grad:
                    p.copy_(tensors[name])
        return True


def write_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> bool:
    """Writes both states; False (and nothing) where they hold something that JSON cannot."""
    state = optimizer.state_dict()
    tensors: Tensors = {}
    plain: dict[str, dict[str, Any]] = {}
    for number, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{key}"] = value
            else:
                plain.setdefault(str(number), {})[key] = value
    content = {"groups": state["param_groups"], "plain": plain, "scheduler": scheduler.state_dict()}
    try:
        write_state(folder / OPTIMIZER, tensors, content)
    except TypeError:
        return False
    return True


def read_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Sets both states to the written ones.

    Raises:
        Damaged: the file is not whole.
    """
    tensors, content = read_state(folder / OPTIMIZER)
    entries: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        entries.setdefault(int(number), {})[key] = tensor
    for number, values in content["plain"].items():
        entries.setdefault(int(number), {}).update(values)
    groups = [{key: _as_it_was(value) for key, value in group.items()} for group in content["groups"]]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    scheduler.load_state_dict(content["scheduler"])


def _as_it_was(value: Any) -> Any:
    """JSON has no tuples, and AdamW's β are one; lists of parameters are read alike."""
    return tuple(value) if isinstance(value, list) else value


def write_random_state(path: Path) -> None:
    """Writes the states of Python's, numpy's and torch's global generators."""
    version, words, gauss = random.getstate()
    kind, key, *rest = np.random.get_state(legacy=True)
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    write_json(
        path,
        {
            "python": [version, list(words), gauss],
            "numpy": [kind, np.asarray(key).tolist(), *rest],
            "cpu": _as_text(torch.get_rng_state()),
            "cuda": [_as_text(state) for state in devices],
        },
    )


def set_random_state(state: dict[str, Any]) -> None:
    """Sets the generators to a written state; those of cards that are not here are left aside."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(key, np.uint32), *rest))
    torch.set_rng_state(_of_text(state["cpu"]))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_of_text(text) for text in state["cuda"]])


def _as_text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _of_text(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), np.uint8).copy())
