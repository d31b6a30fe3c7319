"""Plain supervised fine-tuning on answers, good or bad: how an original model is made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from u2a.data.collate import collate
from u2a.problem import Task, silent
from u2a.training.config import arguments_for

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.models.policy import Policy


def fine_tune(
    policy: Policy,
    texts: Dataset,
    *,
    epochs: float,
    learning_rate: float,
    max_steps: int = 0,
    schedule: str = "linear",
    batch_size: int = 8,
    seed: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
    task: Task = silent,
) -> float:
    """Minimises the NLL of tokenised answers (response tokens only) by AdamW, in place.

    Args:
        max_steps: optimiser steps; 0 = as many as `epochs` take.
        schedule: of the learning rate: `linear` warms up over five steps and decays to 0, or `constant`.

    Returns:
        the mean training loss, in nats per token.
    """
    pad = policy.tokenizer.pad_token_id or 0

    def batch(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        made = collate(rows, range(len(rows)), pad_token_id=pad)
        return {
            "input_ids": made.input_ids,
            "attention_mask": made.attention_mask,
            "labels": made.labels,
        }

    with tempfile.TemporaryDirectory() as scratch:
        args = arguments_for(
            TrainingArguments,
            output_dir=scratch,
            learning_rate=learning_rate,
            num_train_epochs=epochs,
            max_steps=max_steps or -1,
            per_device_train_batch_size=batch_size,
            lr_scheduler_type=schedule,
            warmup_steps=5 if schedule == "linear" else 0,
            seed=seed,
            use_cpu=policy.device.type == "cpu",
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=policy.model,
            args=args,
            train_dataset=texts,
            data_collator=batch,
            callbacks=[ShowSteps("fine-tuning", task), *callbacks],
        )
        trainer.remove_callback(PrinterCallback)
        return float(trainer.train().training_loss)


class AfterSteps(TrainerCallback):
    """Calls `look` with the number of optimiser steps after each of them."""

    def __init__(self, look: Callable[[int], None]) -> None:
        self.look = look

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        del args, control
        self.look(state.global_step)


class ShowSteps(TrainerCallback):
    """Shows a trainer's optimiser steps as a task."""

    def __init__(self, name: str, task: Task) -> None:
        self.name, self.task = name, task

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        del args, control
        self.shown = self.task(self.name, state.max_steps)
        self.advance = self.shown.__enter__()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        del args, state, control
        if self.advance:
            self.advance(1)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        del args, state, control
        self.shown.__exit__(None, None, None)
