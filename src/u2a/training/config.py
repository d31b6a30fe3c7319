"""`U2AConfig`: the arguments of `UnlearnTrainer`."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from u2a.losses import resolve_loss
from u2a.types import UserError

log = logging.getLogger("u2a")
Arguments = TypeVar("Arguments", bound=TrainingArguments)
_MIXED = "ACCELERATE_MIXED_PRECISION"
"""Where `accelerate launch` puts what its flag or configuration file says."""
_RECOMPUTING = "activation_checkpointing"
"""What newer versions of transformers call `gradient_checkpointing`, of which they warn."""


def arguments_for(kind: type[Arguments], **options: Any) -> Arguments:
    """Arguments of a trainer whose model u2a measures before and after: for one card, and for the numbers in
    which it is measured, whatever the launcher wants.

    transformers takes mixed precision from the environment and leaves the model in it: a run that moves
    nothing would then change every log-prob by what bfloat16 rounds away.

    Args:
        kind: `U2AConfig`, `TrainingArguments` or a configuration of TRL.
    """
    if "gradient_checkpointing" in options and hasattr(kind, _RECOMPUTING):
        options[_RECOMPUTING] = options.pop("gradient_checkpointing")
    wanted = os.environ.get(_MIXED, "no")
    if wanted != "no":
        _say_left_out(wanted)
        os.environ[_MIXED] = "no"
    try:
        return on_one_card(kind(**options))
    finally:
        if wanted != "no":
            os.environ[_MIXED] = wanted


@cache
def _say_left_out(wanted: str) -> None:
    log.warning(
        "the launcher's mixed precision (%s) is left out: u2a trains in the numbers in which it measures, "
        "and --dtype says which",
        wanted,
    )


def on_one_card(args: Arguments) -> Arguments:
    """The same arguments, for one card of those that this process sees: several are a launcher's.

    Else transformers puts `nn.DataParallel` over all of them and multiplies the batch by their number, and a
    run would depend on the machine.
    """
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args


@dataclass
class U2AConfig(TrainingArguments):
    """Arguments of `UnlearnTrainer`: those of `transformers.TrainingArguments` and these.

    Args:
        max_grad_norm: 0 here (no clipping), since clipping undoes what weights do to the size of a step.
        loss_type: `ga`, `npo`, `simnpo`; or `graddiff` (ga + nll retain) and `ga+kl`.
        loss_options: options of that loss, e.g. `{"beta": 0.1}`.
        retain_loss: `none`, `nll`, `kl` or `l2`; None = what `loss_type` says (`none` for the plain ones).
        retain_weight: λ.
        retain_batch_size: retain rows of each optimiser step over all processes; 0 = as many as negatives.
        joint_weight: μ, of the preference pairs; 0 = they are left alone.
        joint_batch_size: pairs of each optimiser step over all processes; 0 = half as many as negatives (a
            pair has two answers).
        max_length: tokens of prompt and response together.
        template: `auto` (the tokenizer's chat template) or `none` (raw text).

    Example:
        >>> from u2a import U2AConfig
        >>> args = U2AConfig("out", loss_type="graddiff", retain_weight=0.5, report_to="none")
        >>> args.loss_type, args.retain_loss  # a name of the literature: ga with the nll retain term
        ('ga', 'nll')
    """

    # clipping would undo what weights do to the size of a step
    max_grad_norm: float = field(default=0.0, metadata={"help": "Largest gradient norm; 0 = no clipping."})
    loss_type: str = field(default="npo", metadata={"help": "ga, npo, simnpo, graddiff or ga+kl."})
    loss_options: dict[str, Any] | None = field(
        default=None, metadata={"help": "Options of the loss, as a dictionary."}
    )
    retain_loss: str | None = field(default=None, metadata={"help": "none, nll, kl or l2."})
    retain_weight: float = field(default=1.0, metadata={"help": "λ of the retain term."})
    retain_batch_size: int = field(default=0, metadata={"help": "Retain rows per optimiser step."})
    joint_weight: float = field(default=0.0, metadata={"help": "μ of the preference pairs."})
    joint_batch_size: int = field(default=0, metadata={"help": "Preference pairs per optimiser step."})
    max_length: int = field(default=512, metadata={"help": "Tokens of prompt and response together."})
    template: str = field(default="auto", metadata={"help": "auto or none."})

    def __post_init__(self) -> None:
        self.remove_unused_columns = False
        # without an accelerator torch warns that pinning does nothing
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        if self.ddp_broadcast_buffers is None:  # nothing changes them between the passes of a step
            self.ddp_broadcast_buffers = False
        super().__post_init__()
        on_one_card(self)
        self.loss_type, self.retain_loss = resolve_loss(self.loss_type, self.retain_loss)

    def check_terms(self, *, retain: bool, pairs: bool, reference: bool) -> None:
        """Checks that what the terms of the objective need is there.

        Args:
            retain: whether there is retain data; pairs: whether there is J on pairs for training; reference:
                whether the log-probs of the original model can be had.

        Raises:
            UserError: a term lacks what it needs, what is there has no effect, or negatives would be
            dropped.
        """
        for name in ("retain_weight", "joint_weight"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"U2AConfig({name}={value}): must be a finite number of at least 0")
        if self.retain_loss == "kl" and not reference:
            raise UserError("the kl retain term of full fine-tuning needs reference_model, a frozen copy")
        if self.dataloader_drop_last:
            raise UserError(
                "dataloader_drop_last would leave negatives out of the objective; set it to False"
            )
        if self.retain_loss in ("nll", "kl") and not retain:
            raise UserError(f"the {self.retain_loss} retain term needs retain data: give retain_dataset")
        if retain and self.retain_loss not in ("nll", "kl"):
            raise UserError(
                f"retain_dataset has no effect with the retain term {self.retain_loss}: give "
                "U2AConfig(retain_loss='nll') or 'kl', or leave it out"
            )
        if self.joint_weight > 0 and not pairs:
            raise UserError("joint_weight needs preference pairs: give joint_objective")
        if pairs and self.joint_weight == 0:
            raise UserError(
                "joint_objective has no effect with joint_weight 0: give U2AConfig(joint_weight=...) "
                "above 0, or leave it out"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without the token: `training_args.bin` is saved beside the model, and pushed with it."""
        return {**vars(self), "hub_token": None}
