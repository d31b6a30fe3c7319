"""Relearning: what a few steps of fine-tuning on the negatives bring back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from u2a.config import option
from u2a.evaluation.figure import Array, Figure
from u2a.types import GuardStop

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Subject
    from u2a.models.policy import Policy

RANK = 16
"""Of the adapter that relearns, on all linear layers."""
BATCH = 8
"""Negatives of one step."""
LOOKS = 4
"""How often `relearned_at` is looked for, at equal distances, the last time after all steps."""
ENOUGH = 1e-3
"""Nats per token: what is as near to the original's log-prob is back at it."""


def first_back(values: Array) -> Array:
    """Steps at the first look where the mean gap is at most `ENOUGH`, infinite where it is at none.

    Columns: the L gaps of a negative to the original, one a look, then the L numbers of steps at the looks.
    """
    gaps, steps = np.split(values, 2, axis=-1)
    back = gaps.mean(axis=-2) <= ENOUGH
    return np.where(back, steps[..., 0, :], np.inf).min(axis=-1)


@dataclass(frozen=True)
class Relearning:
    """After `--relearn-steps` of AdamW on the negatives, 8 in each, by a new LoRA adapter of rank 16 (Lynch
    et al. 2024, arXiv 2402.16835; Hu et al. 2024, arXiv 2406.13356); every model, the original too, gets the
    same adapter, order and rate: `relearned_logprob`, mean log-prob of the negatives in nats per token, ↓;
    `relearned_gap`, by how much that stays under what the original model gave them before any step, in nats
    per token, ↑; 0 or less = it is all back; `relearned_at`, steps after which the negatives' mean log-prob
    was first found back at the original's, looked at before any step and after each quarter of them, ↑;
    infinite = not within the steps, 0 for the original. The steps teach as well as remind (Feng et al. 2025,
    arXiv 2506.00688): compare with the original after as many, and take few."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("negatives",),)
    asks: ClassVar[tuple[str, ...]] = ("relearn_steps",)

    relearn_steps: int = option(
        0, "relearning: optimiser steps on the negatives, 8 in each; 0 = leave it out.", least=0
    )
    relearn_rate: float = option(1e-4, "relearning: AdamW's learning rate, constant.", above=0)

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """All three, values of each negative; the model is the same after it as before.

        Raises:
            GuardStop: a log-prob is not finite after the steps.
            UserError: the model carries an adapter.
        """
        texts = material.negatives
        if texts is None or not self.relearn_steps:
            return []
        lengths = np.asarray(texts["n_tokens"], float)
        before = (subject.original or subject).logprobs("negatives", texts)
        looks = {0: subject.logprobs("negatives", texts), **self._relearned(subject, texts)}
        gaps = {steps: (before - s) / lengths for steps, s in looks.items()}
        after = looks[self.relearn_steps]
        at = np.stack([*gaps.values(), *(np.full(len(lengths), float(steps)) for steps in gaps)], 1)
        return [
            Figure("relearned_logprob", after / lengths, "lower", "nats per token"),
            Figure("relearned_gap", gaps[self.relearn_steps], "higher", "nats per token"),
            Figure("relearned_at", at, "higher", "steps", first_back),
        ]

    def _relearned(self, subject: Subject, texts: Dataset) -> dict[int, Array]:
        """Steps at each look -> log-probs (N,) of the texts then, summed over tokens; the last after all."""
        from u2a.training.finetune import AfterSteps, fine_tune

        seed = subject.sampling.seed
        every = {-(-self.relearn_steps * part // LOOKS) for part in range(1, LOOKS)} - {self.relearn_steps}
        found: dict[int, Array] = {}

        def look(step: int) -> None:
            if step in every:
                found[step] = subject.logprobs_now(f"log-probs after step {step}", texts)

        with relearner(subject.whole_model("relearning"), subject.policy.tokenizer, seed) as policy:
            try:
                fine_tune(
                    policy,
                    texts,
                    epochs=1.0,
                    max_steps=self.relearn_steps,
                    learning_rate=self.relearn_rate,
                    schedule="constant",
                    batch_size=BATCH,
                    seed=seed,
                    callbacks=[AfterSteps(look)],
                    task=lambda _name, steps: subject.task(f"{subject.name}: relearning, steps", steps),
                )
                return {**found, self.relearn_steps: subject.logprobs_now("log-probs, relearned", texts)}
            except GuardStop as error:
                raise GuardStop(f"relearning {subject.name}: lower --relearn-rate ({error})") from error


@contextmanager
def relearner(model: Any, tokenizer: Any, seed: int) -> Iterator[Policy]:
    """Within, a policy that trains a new adapter on `model`, its A drawn from `seed`; `model` has it as well.
    After it the model is as it was: its layers, what of it is trained, its mode, and the cache that a trainer
    turns off."""
    from u2a.models.policy import Policy, add_adapter

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    training, use_cache = model.training, model.config.use_cache
    wrapped = add_adapter(model, rank=RANK, seed=seed)
    try:
        yield Policy(wrapped, tokenizer, has_adapter=True, source="")
    finally:
        wrapped.unload()
        model.train(training)
        model.config.use_cache = use_cache
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
