"""π_ref while training: the adapter off, a frozen copy, or the model as it is before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from u2a.logprobs import evaluating, response_logits
from u2a.models.adapter_kinds import refuse_changed_base
from u2a.passes.dataset import dataset_logprobs
from u2a.training.rows import Negatives
from u2a.types import Batch, UserError


class Reference:
    """The original model of a run.

    Args:
        trainer: gives the model that is trained, its loss and how far it is. frozen: a copy of the original
            model, or None.

    Raises:
        UserError: a reference is needed and several adapters are active, so that the model without them is
            not the one that was brought; or the `kl` term needs one, and not the adapter alone is trained, or
            the adapter is of a kind that may have changed its base.
    """

    def __init__(self, trainer: Any, frozen: Any | None, pad_token_id: int) -> None:
        self._trainer, self._frozen, self._pad_token_id = trainer, frozen, pad_token_id
        needed = trainer.loss.needs_reference or trainer.args.retain_loss == "kl"
        if needed and frozen is None:
            _refuse_several_adapters(trainer.model)
        if trainer.args.retain_loss == "kl" and frozen is None and hasattr(trainer.model, "disable_adapter"):
            refuse_changed_base(trainer.model)
            _refuse_trained_base(trainer.model)

    def measure(self, negatives: Negatives) -> Tensor:
        """s_ref (N,) of negatives, measured once and kept with them; zeros where the loss needs none.

        Raises:
            UserError: the policy has taken steps and is no reference any more, or its adapter is of a kind
            that may have changed its base.
        """
        if negatives.reference is None and not self._trainer.loss.needs_reference:
            negatives.reference = torch.zeros(len(negatives))
        if negatives.reference is None:
            model = self._trainer.model if self._frozen is None else self._frozen
            switched = self._frozen is None and hasattr(model, "disable_adapter")
            moved = self._frozen is None and (not switched or bool(_trained_base(model)))
            if self._trainer.state.global_step and moved:
                raise UserError(
                    "the loss compares with the original model, which training has changed: give "
                    "these rows as eval_dataset when the trainer is made, or reference_model, or ref_logprob"
                )
            if switched:
                refuse_changed_base(model)
            with self._own_precision(), adapter_off(model) if switched else nullcontext():
                negatives.reference = dataset_logprobs(
                    model,
                    negatives.rows,
                    max_tokens=max(2048, self._trainer.args.max_length),
                    pad_token_id=self._pad_token_id,
                )
        return negatives.reference

    def _own_precision(self) -> AbstractContextManager[Any]:
        """Within, models compute in the mixed precision that the policy is trained in, if any: else the
        policy would be away from its reference before the first step."""
        return self._trainer.accelerator.autocast()

    def logits(self, batch: Batch) -> Tensor:
        """Logits (R, V) at the response tokens of a batch, without gradient."""
        policy = self._trainer.model
        with torch.no_grad(), self._own_precision():
            if self._frozen is not None:
                frozen = self._frozen.to(policy.device)
                with evaluating(frozen):
                    return response_logits(frozen, batch)[0]
            with adapter_off(policy), evaluating(policy):
                return response_logits(policy, batch)[0]


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Within, the adapter of a PEFT model is off. After it the same parameters are trained as before: PEFT
    itself makes all of an active adapter trainable when it switches it on."""
    if not hasattr(model, "disable_adapter"):
        yield
        return
    trained = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for p, before in trained:
            if p.requires_grad != before:
                p.requires_grad_(before)


def _refuse_several_adapters(model: Any) -> None:
    active = model.active_adapters if hasattr(model, "disable_adapter") else []
    if len(active) > 1:
        raise UserError(
            f"several adapters are active ({', '.join(active)}), and the reference is the model with its "
            "adapter off, so it would lack them all: merge those of the original model first "
            "(merge_and_unload()) and give peft_config for the one to train, or give reference_model"
        )


def _refuse_trained_base(model: Any) -> None:
    if loose := _trained_base(model):
        raise UserError(
            f"parameters besides the adapter's are trained ({len(loose)}, such as {loose[0]}), and the kl "
            "term compares with the model with its adapter off, which they change: freeze them, or give "
            "reference_model"
        )


def _trained_base(model: Any) -> list[str]:
    """Trained parameters that a PEFT model keeps when its adapter is switched off: the model's own, such as
    the biases that `bias` of a LoRA configuration trains. Of those in `modules_to_save` PEFT has copies."""
    own = (getattr(model.base_model, "prefix", "lora_"), "modules_to_save", "trainable_tokens")
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and name.startswith("base_model.")
        and not any(part in name for part in own)
    ]
