"""Records an inner run, optimiser step by optimiser step, so that it can be gone through again.

The run is the real trainer's. Before each step φ, AdamW's moments and the gradient are written to a scratch
folder, so memory does not grow with the number of steps; disk holds 4·|φ| numbers a step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from u2a.alignment.inner_run import left_as_found, unlearning_trainer
from u2a.config import UnlearnOptions
from u2a.impact.context import Direction
from u2a.problem import Problem, Task, silent
from u2a.trainer import UnlearnTrainer
from u2a.training.finetune import ShowSteps
from u2a.trajectory.adamw import AdamWStep


@dataclass(frozen=True)
class Snapshot:
    """What AdamW sees when it takes a step, each by parameter: φ and its moments m and v before the step,
    and the gradient of the step's loss."""

    phi: Direction
    m: Direction
    v: Direction
    gradient: Direction


@dataclass(frozen=True)
class RecordedStep:
    """One optimiser step.

    `adamw` are AdamW's constants by parameter; `batches` the step's micro-batches as the trainer made them
    (`index` are positions of negatives, `retain` the retain rows of that micro-batch, if any).
    """

    adamw: dict[str, AdamWStep]
    batches: list[dict[str, Any]]
    file: Path

    @property
    def rows(self) -> Tensor:
        """Positions of the step's negatives, (R,) int64, in the order of its micro-batches."""
        return torch.cat([batch["index"].cpu() for batch in self.batches])

    def load(self, device: torch.device) -> Snapshot:
        """The step's snapshot, read from the scratch folder."""
        parts: dict[str, Direction] = {part: {} for part in _PARTS}
        for key, value in load_file(self.file, device=str(device)).items():
            part, _, name = key.partition(":")
            parts[part][name] = value
        return Snapshot(**parts)


_PARTS = ("phi", "m", "v", "gradient")


@dataclass(frozen=True)
class Recording:
    """An inner run: the trainer that did it, and its T steps in order."""

    trainer: UnlearnTrainer
    steps: Sequence[RecordedStep]


@contextmanager
def recorded_run(
    problem: Problem,
    unlearn: UnlearnOptions,
    *,
    weights: np.ndarray | None = None,
    seed: int = 0,
    restore: bool = True,
    task: Task = silent,
) -> Iterator[Recording]:
    """Unlearns with the real trainer from the current φ and records it; within the block φ is φ_T.

    Costs the run itself and the writing of 4·|φ| numbers a step. After the block the scratch folder is gone,
    the model is in eval mode and, with `restore`, φ is what it was before.

    Args:
        weights: ω (N,), ≥ 0; default 1 for each negative.
        seed: the trainer's.

    Raises:
        UserError: unusable weights. GuardStop: a loss is not finite.
    """
    omega = np.ones(len(problem.negative_texts)) if weights is None else np.asarray(weights, np.float64)
    before = {name: p.detach().clone() for name, p in problem.policy.trainable().items()}
    with tempfile.TemporaryDirectory(prefix="u2a-run-") as folder, left_as_found(problem.policy):
        trainer = unlearning_trainer(
            problem,
            omega,
            unlearn,
            learning_rate=unlearn.learning_rate,
            seed=seed,
            folder=folder,
            callbacks=[ShowSteps("recording an unlearning run", task)],
        )
        recorder = _Recorder(trainer, Path(folder))
        trainer.add_callback(recorder)
        try:
            trainer.train()
            after = {name: p.detach().clone() for name, p in problem.policy.trainable().items()}
            yield Recording(trainer, recorder.steps)
            set_parameters(problem, before if restore else after)
        except BaseException:
            set_parameters(problem, before)
            raise


def set_parameters(problem: Problem, phi: Direction) -> None:
    """Sets φ, in place."""
    with torch.no_grad():
        for name, p in problem.policy.trainable().items():
            p.copy_(phi[name])


@dataclass
class _Recorder(TrainerCallback):
    """Writes a snapshot just before each optimiser step, when the gradient is complete."""

    trainer: UnlearnTrainer
    folder: Path
    steps: list[RecordedStep] = field(default_factory=list)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        del args, control
        optimizer: Any = self.trainer.optimizer
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        tensors: dict[str, Tensor] = {}
        constants: dict[str, AdamWStep] = {}
        for name, p in self.trainer.model.named_parameters():
            if not p.requires_grad:
                continue
            moments, group = optimizer.state.get(p, {}), group_of[id(p)]
            zeros = torch.zeros_like(p)
            values = (p, moments.get("exp_avg", zeros), moments.get("exp_avg_sq", zeros), p.grad)
            for part, value in zip(_PARTS, values, strict=True):
                kept = zeros if value is None else value
                tensors[f"{part}:{name}"] = kept.detach().to("cpu", copy=True).contiguous()
            constants[name] = AdamWStep(
                number=int(moments.get("step", 0)) + 1,
                learning_rate=float(group["lr"]),
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                epsilon=group["eps"],
                weight_decay=group["weight_decay"],
            )
        file = self.folder / f"step-{state.global_step}.safetensors"
        save_file(tensors, file)
        self.steps.append(RecordedStep(constants, list(self.trainer.step_batches), file))
