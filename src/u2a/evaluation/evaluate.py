"""Models measured from Python: the original beside the others, on the same rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from u2a.evaluation.choice import measurable
from u2a.evaluation.material import Plan, material_of, prompts_of
from u2a.evaluation.readings import ORIGINAL, Reading, estimates
from u2a.evaluation.subject import Sampling, Subject
from u2a.problem import Task, silent
from u2a.types import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from datasets import Dataset

    from u2a.evaluation import Metric
    from u2a.evaluation.figure import Figure
    from u2a.models.policy import Policy

    Model = str | Path | Policy

log = logging.getLogger("u2a")

EXACT = "float32"
"""The number format of models that are measured, unless another is asked for: merged into a weight of 16
bits, what an adapter adds is rounded, and with it the change that is looked for."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    `readings[model][figure]` has `estimate` (value, 95 % interval, n) and `change`, the paired difference to
    the model `original` (None for that one itself). `left_out`: metric -> why it was not measured.
    """

    readings: dict[str, dict[str, Reading]]
    left_out: dict[str, str]

    def __repr__(self) -> str:
        """The names alone: the figures hold the values of every example."""
        figures = len(next(iter(self.readings.values()), ()))
        return f"Evaluation(models: {', '.join(self.readings)}; {figures} figures of each)"


def evaluate(
    original: Model,
    models: Mapping[str, Model],
    *,
    metrics: Sequence[str | Metric] = (),
    test: Dataset | None = None,
    negatives: Dataset | None = None,
    held_out_negatives: Dataset | None = None,
    retain: Dataset | None = None,
    text: Dataset | None = None,
    safe_prompts: Dataset | None = None,
    unsafe_prompts: Dataset | None = None,
    answers: int = 64,
    sampling: Sampling | None = None,
    template: str = "auto",
    max_length: int = 512,
    max_tokens: int = 2048,
    dtype: str = EXACT,
    device: str | torch.device | None = None,
    seed: int = 0,
    task: Task = silent,
) -> Evaluation:
    """Did it work, what did it break? Measures every model on the same rows, as `u2a evaluate` does.

    Args:
        original: what the others are compared with: a source as for `load_policy` (an adapter folder is
            merged into its base), or a `Policy`, measured as it is, its adapter on.
        models: name -> model, loaded one after another.
        metrics: names, or metrics with options, such as `Relearning(relearn_steps=8)`; none = all that have
            data.
        test: held-out pairs from `load_preferences`, whose prompts are answered too.
        negatives, held_out_negatives: from `load_negatives`. retain, text: from `load_retain`.
        safe_prompts, unsafe_prompts: from `u2a.data.load.load_prompts`.
        answers: most prompts of each kind that are answered, 0 = all; sampling: how, greedy by default.
        template, max_length, max_tokens: as in `prepare`.
        dtype: of models that are loaded; `bfloat16` halves their memory, and rounds what an adapter adds to
            the weights that it is merged into. device: as in `load_policy`.
        seed: of the bootstrap, and of the draw where there
            are more prompts than `answers`.

    Raises:
        UserError: a metric is unknown, or was asked for and cannot be measured; a model cannot be loaded.
        GuardStop: a figure is not finite.

    Example:
        >>> from u2a import evaluate, load_preferences, tiny_model
        >>> pairs = [{"prompt": f"Is {i} odd?", "chosen": "Maybe.", "rejected": "No."} for i in range(4)]
        >>> found = evaluate(
        ...     tiny_model(seed=0), {"other": tiny_model(seed=1)},
        ...     metrics=["preference"], test=load_preferences(pairs),
        ... )
        >>> list(found.readings)
        ['original', 'other']
        >>> accuracy = found.readings["other"]["accuracy"]
        >>> 0 <= accuracy.estimate.value <= 1 and accuracy.change is not None
        True
    """
    given = {
        "test": test,
        "negatives": negatives,
        "held_out_negatives": held_out_negatives,
        "retain": retain,
        "text": text,
        "safe_prompts": safe_prompts,
        "unsafe_prompts": unsafe_prompts,
    }
    rows = {role: each for role, each in given.items() if each is not None}
    if ORIGINAL in models:
        raise UserError(f"models: {ORIGINAL!r} is the name of the original model; take another")
    how = sampling or Sampling()
    prompts = prompts_of(rows, answers, seed, log.info)
    chosen, left_out = measurable(
        _named(metrics),
        rows,
        Plan(prompts, 1 + len(models), how.max_new_tokens),
        log.info,
        asked_for=bool(metrics),
    )
    found: dict[str, dict[str, Figure]] = {}
    first: Subject | None = None
    others: list[str] = []
    for name, model in {ORIGINAL: original, **models}.items():
        subject = _subject(name, model, first, how, template, max_length, max_tokens, task, dtype, device)
        material = material_of(rows, prompts, subject.renderer)
        found[name] = {f.name: f for metric in chosen.values() for f in metric.measure(subject, material)}
        first = first or subject
        if subject.vocabulary != first.vocabulary:
            others.append(name)
        del subject  # before the next is loaded
    return Evaluation(estimates(found, seed, others), left_out)


def _named(metrics: Sequence[str | Metric]) -> dict[str, Metric]:
    from u2a.evaluation import METRICS
    from u2a.plugins import find

    found: dict[str, Metric] = {}
    for metric in metrics or tuple(METRICS):
        if isinstance(metric, str):
            if ":" not in metric:
                find("u2a.metrics", metric, METRICS, flag="--metrics")
            if metric not in METRICS:
                raise UserError(f"metrics: {metric}: take some of {', '.join(METRICS)}")
            found[metric] = METRICS[metric]()
        else:
            names = [name for name, kind in METRICS.items() if type(metric) is kind]
            found[names[0] if names else type(metric).__name__] = metric
    return found


def _subject(
    name: str,
    model: Model,
    original: Subject | None,
    sampling: Sampling,
    template: str,
    max_length: int,
    max_tokens: int,
    task: Task,
    dtype: str,
    device: str | torch.device | None,
) -> Subject:
    from u2a.data.render import Renderer
    from u2a.models.policy import Policy, load_policy
    from u2a.passes.positions import usable_length

    if isinstance(model, Policy):
        policy = model
    else:
        policy = load_policy(model, lora_rank=0, dtype=dtype, device=device, trained=False)
    renderer = Renderer(policy.tokenizer, template, usable_length(policy.model, max_length))
    return Subject(name, policy, renderer, sampling, original, max_tokens, task)
