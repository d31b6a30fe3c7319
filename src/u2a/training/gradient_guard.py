"""A guard in training: a gradient that is not finite stops the run before AdamW takes it in."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from u2a import processes
from u2a.models.sharding import own_part
from u2a.training.micro_batches import parts
from u2a.types import GuardStop


class FiniteGradients(TrainerCallback):
    """Looks at the whole gradient before each optimiser step of `trainer`, an `UnlearnTrainer`."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stops a run whose gradient is not finite.

        Raises:
            GuardStop: names the step, the parameter, and the row if one row alone has such a gradient.
        """
        del args, control
        if self.trainer.accelerator.scaler is not None:
            return  # half precision: the scaler finds them, leaves the step out and lowers its scale
        bad = next((name for name in processes.gathered(self._not_finite()) if name), "")
        if bad:
            raise GuardStop(
                f"the gradient of {bad} is not finite at step {state.global_step}: {self._whose()}; lower "
                "--learning-rate, or look at that data; if it is sound, try --dtype float32"
            )

    def _not_finite(self) -> str:
        """The first parameter with a gradient that is not finite; empty = none."""
        gradients = {n: p.grad for n, p in self.trainer.model.named_parameters() if p.grad is not None}
        if not gradients:
            return ""
        finite = torch.stack([torch.isfinite(own_part(g)).all() for g in gradients.values()]).tolist()
        return next((name for name, good in zip(gradients, finite, strict=True) if not good), "")

    def _whose(self) -> str:
        """The step's rows, text by text: asked only once their sum is not finite."""
        if processes.count() > 1:
            return "some row of the step has such a one"
        trainer, names = self.trainer, []
        for inputs in trainer.step_batches:
            for part in parts(inputs, 1):
                trainer.model.zero_grad()
                trainer.training_step(trainer.model, part)
                if self._not_finite():
                    return f"that of {trainer.name_of(part)}"
                names.append(trainer.name_of(part))
        return f"each row's alone is finite, their sum is not ({', '.join(names)})"
