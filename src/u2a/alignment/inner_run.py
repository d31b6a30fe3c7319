"""The inner run: one weighted unlearning of a problem, as the outer loop does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from u2a import processes
from u2a.config import UnlearnOptions
from u2a.logprobs import unwrapped
from u2a.problem import Problem
from u2a.trainer import U2AConfig, UnlearnTrainer
from u2a.training.config import arguments_for
from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.models.policy import Policy


def unlearning_trainer(
    problem: Problem,
    weights: np.ndarray,
    options: UnlearnOptions,
    *,
    learning_rate: float,
    seed: int,
    folder: str,
    callbacks: Sequence[TrainerCallback] = (),
    l2_start: Mapping[str, Tensor] | None = None,
) -> UnlearnTrainer:
    """The trainer of one inner run, from the current φ; `train()` does the run, in place.

    Args:
        weights: ω (N,), ≥ 0, one for each negative.
        learning_rate: AdamW's, constant; the outer loop may have halved the one of `options`.
        folder: scratch folder of the run, the caller's to remove. Nothing worth keeping goes there.
        l2_start: φ₀, for the `l2` retain term; None = the current φ is φ₀.

    Raises:
        UserError: several processes cannot share a micro-batch evenly, or `options` contradict the problem.
    """
    check_options(problem, options)
    count = processes.count()
    if options.batch_size % count:
        raise UserError(
            f"--batch-size {options.batch_size} counts over all processes: take a multiple of {count}"
        )
    rows = problem.negative_texts
    for name, values in (("weight", weights), ("ref_logprob", problem.reference.numpy())):
        rows = rows.add_column(name, np.asarray(values, np.float64))
    if "id" in problem.negatives.column_names:
        rows = rows.add_column("id", problem.negatives["id"])  # for messages
    args = arguments_for(
        U2AConfig,
        output_dir=folder,
        retain_loss=problem.retain_loss,
        retain_weight=problem.retain_weight,
        joint_weight=options.joint,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size // count,
        gradient_accumulation_steps=options.gradient_accumulation,
        gradient_checkpointing=options.gradient_checkpointing,
        seed=seed,
        ddp_find_unused_parameters=_has_experts(problem.policy.model),
        use_cpu=problem.policy.device.type == "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = UnlearnTrainer(
        model=problem.policy.model,
        args=args,
        loss=problem.loss,
        train_dataset=rows,
        retain_dataset=problem.retain_texts if problem.retain_loss in ("nll", "kl") else None,
        joint_objective=problem.joint if options.joint > 0 else None,
        reference_model=problem.frozen,
        processing_class=problem.policy.tokenizer,
        callbacks=list(callbacks),
        l2_start=l2_start,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def even_joint(problem: Problem) -> float:
    """μ with which, at the original model, a nat of a pair's answer pulls as hard as one of a negative: the
    mean |dℓ/ds| of the negatives by prior weight over the mean |d/ds| of a pair's term of J (no unit).

    With npo that is 2/β of J, 20; with losses that divide by length less. Adam takes out the scale of the
    whole, not the ratio of its parts: with μ far below this pairs hardly count, far above it negatives.

    Raises:
        ValueError: the problem has no pairs to train on.
    """
    if problem.joint is None:
        raise ValueError("the problem has no pairs to train on")
    slopes = problem.loss.derivative(problem.reference, problem.reference, problem.lengths)
    s = problem.joint.reference.detach().clone().requires_grad_()
    (of_pairs,) = torch.autograd.grad(problem.joint.terms(s).sum(), s)
    of_negatives = np.average(slopes.abs().double().numpy(), weights=problem.prior)
    return float(of_negatives / of_pairs.abs().mean())


def check_options(problem: Problem, options: UnlearnOptions) -> None:
    """Refuses options of an inner run that were settled when its problem was prepared, and otherwise.

    Raises:
        UserError: a retain term, its weight or a share of pairs other than the problem's, or μ > 0 without
        pairs.
    """
    if options.retain_loss not in ("", problem.retain_loss):
        raise UserError(
            f"UnlearnOptions(retain_loss={options.retain_loss!r}): the problem was prepared with the retain "
            f"term {problem.retain_loss}, which counts: give it to prepare(retain_loss=...)"
        )
    known = (UnlearnOptions.retain_weight, problem.retain_weight)
    if problem.retain_loss != "none" and options.retain_weight not in known:
        raise UserError(
            f"UnlearnOptions(retain_weight={options.retain_weight:g}): the problem was prepared with "
            f"{problem.retain_weight:g}, which counts: give it to prepare(retain_weight=...)"
        )
    if options.joint > 0 and problem.joint is None:
        raise UserError(
            f"UnlearnOptions(joint={options.joint:g}) needs pairs to train on: prepare(joint_share=...) sets "
            "them aside"
        )
    asked, default = options.joint_share, UnlearnOptions.joint_share
    if options.joint > 0 and asked not in (default, problem.joint_share or default):
        raise UserError(
            f"UnlearnOptions(joint_share={asked:g}): the problem was prepared with {problem.joint_share:g}, "
            "which counts: give it to prepare(joint_share=...)"
        )


@contextmanager
def left_as_found(policy: Policy) -> Iterator[None]:
    """Around a run: after it the policy is in eval mode, with gradient checkpointing only if it had it."""
    base = unwrapped(policy.model)
    layers = [(m, m.gradient_checkpointing) for m in base.modules() if hasattr(m, "gradient_checkpointing")]
    try:
        yield
    finally:
        policy.model.eval()
        switched_on = any(layer.gradient_checkpointing and not before for layer, before in layers)
        for layer, before in layers:
            layer.gradient_checkpointing = before
        if switched_on and hasattr(base, "_require_grads_hook"):  # of the embeddings, in every run another
            base.disable_input_require_grads()


def _has_experts(model: Any) -> bool:
    """Whether a pass may leave some parameters out, which exchanging gradients must take into account."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return any(getattr(unwrapped(model).config, name, None) for name in names)
