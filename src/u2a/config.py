"""Options: dataclasses free of torch. `u2a.schema` is the way from YAML and flags to them.

A part's fields are its options. Options of losses, objectives and curvatures are the fields of their own
classes (those that carry a help text), so that adding one of those adds its options everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from u2a.types import UserError, shown

LARGEST_SEED = 2**31 - 1
"""So that the seeds derived from it stay below numpy's limit of 2³²."""
MOST_REPETITION_RISE = 0.1
"""A rise of the share of repeated 4-grams in answers that shows: of the study's models those above it ran in
circles, those below did not (docs/results.md)."""

MOST_OVERLAP_RISE = 0.3
"""A rise of the share of an answer's 2-grams that other answers have too, of which is told."""


def option(
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    flag_only: bool = False,
    number: bool = False,
) -> Any:
    """A dataclass field that is an option: its help stands in `--help`, the docs and the errors.

    Args:
        least, most: smallest and largest value; above: a bound that the value must exceed.
        flag_only: a YAML file alone cannot set it: a shared file must not run code, nor send text or keys.
        number: text that a bare number of a YAML file may stand for.
    """
    bounds = {"least": least, "above": above, "most": most, "flag_only": flag_only, "number": number}
    return field(default=default, metadata={"help": help, "choices": tuple(choices), **bounds})


def refusal(
    value: Any,
    *,
    choices: Sequence[str] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    **_others: Any,
) -> str:
    """Why an option with these limits cannot be `value`, in words that follow its name; "" where it can."""
    if choices and value not in choices:
        return f"take one of {', '.join(choices)}"
    if isinstance(value, (str, bool)):
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    if least is not None and value < least:
        return f"must be at least {least:g}"
    if above is not None and value <= above:
        return f"must be above {above:g}"
    if most is not None and value > most:
        return f"must be at most {most:g}"
    return ""


def check_options(part: Any) -> None:
    """Checks each option of a dataclass instance that Python code made, where no command has done it.

    Raises:
        UserError: a value is of another type than its default, or outside its choices or bounds.
    """
    for each in fields(part):
        if "help" not in each.metadata:
            continue
        value = getattr(part, each.name)
        wrong = _wrong_type(value, each.default) or refusal(value, **each.metadata)
        if wrong:
            raise UserError(f"{type(part).__name__}({each.name}={shown(value)}): {wrong}")


def _wrong_type(value: Any, default: Any) -> str:
    for kind, fits, words in (
        (bool, bool, "true or false"),
        (str, str, "text"),
        (int, Integral, "a whole number"),
        (float, Real, "a number"),
    ):
        if isinstance(default, kind):
            right = isinstance(value, fits) and (kind is bool or not isinstance(value, bool))
            return "" if right else f"must be {words}"
    return ""


class Checked:
    """A dataclass whose options are checked when it is made (`check_options`)."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class DataOptions:
    """Data: where the rows are and how they become tokens."""

    negatives: str = option("", "Bad answers to unlearn: file, folder, Hub id, or - for standard input.")
    preferences: str = option(
        "", "Preference pairs for validation: J is measured on them. --objective reward: prompts are enough."
    )
    retain: str = option("", "Good texts whose likelihood must stay: utility U is measured on them.")
    template: str = option("auto", "Chat template: the tokenizer's own, or raw text.", ("auto", "none"))
    max_length: int = option(
        512, "Longest prompt + response, in tokens; prompts are cut on the left.", least=2
    )


@dataclass(frozen=True)
class TestOptions:
    """Held-out data: read for the final table only."""

    test: str = option("", "Held-out pairs, only for the final table.")


@dataclass(frozen=True)
class ModelOptions:
    """Model and adapter: the original model, and which of its parameters are trained."""

    model: str = option("", "Original model: folder, Hub id, GGUF file, adapter folder, or `demo`.")
    lora_rank: int = option(16, "Rank of the LoRA adapter; 0 = full fine-tuning.", least=0)
    lora_alpha: int = option(0, "LoRA's alpha; 0 = twice the rank.", least=0)
    lora_dropout: float = option(
        0.0,
        "LoRA's dropout while unlearning; the model's own is off. It makes npo's comparison with the "
        "original model noisy.",
        least=0,
    )
    lora_targets: str = option(
        "all-linear", "Modules that get an adapter: all-linear, or comma-separated names."
    )
    dtype: str = option("auto", "Number format.", ("auto", "float32", "bfloat16", "float16", "float64"))
    quantize: str = option("none", "4bit loads the frozen base in 4 bits (QLoRA).", ("none", "4bit"))
    attn_implementation: str = option(
        "auto",
        "Attention kernel; flash_attention_2 needs the package flash-attn, an accelerator and 16 bits.",
        ("auto", "eager", "sdpa", "flash_attention_2"),
    )
    device: str = option(
        "", "Device, e.g. cuda or cpu; empty = the accelerator (not Apple's mps: no float64), else the CPU."
    )
    trust_remote_code: bool = option(
        False, "Run code that comes with the model. Only if you trust it.", flag_only=True
    )


@dataclass(frozen=True)
class ImpactOptions:
    """Impact scores: how they are measured."""

    loss: str = option(
        "npo",
        "Unlearning loss: ga, npo, simnpo, graddiff (ga + nll), ga+kl, or one of your own: module:Class, or "
        "the name of an installed one.",
    )
    objective: str = option(
        "preference",
        "What alignment means: preference, nll of preferred texts, reward of the model's own answers, or an "
        "objective of your own, as for the loss.",
    )
    curvature: str = option("diagonal", "Curvature H of the inner problem.")
    scoring: str = option(
        "auto",
        "How log-probs are differentiated along ∇J and ∇U: fd needs the least memory, exact the fewest "
        "passes for several directions; auto takes the one with the fewest.",
        ("auto", "fd", "jvp", "exact"),
    )
    self_check: int = option(4, "Examples on which fd is compared with exact gradients; 0 = none.", least=0)
    score_tokens: int = option(
        2048, "Most tokens, padding included, in one forward pass of scoring or measuring.", least=1
    )


@dataclass(frozen=True)
class WeightOptions(Checked):
    """Selection and weights: how impacts become weights."""

    select: str = option("50%", "How many negatives at most: a percentage, or a number.")
    eta: float = option(0.5, "Step of the mirror ascent on weights (no unit).", least=0)
    rho: float = option(
        0.0,
        "Sparsity: strength of the penalty on √ω; it acts from the second outer step on.",
        least=0,
    )
    weight_floor: float = option(0.05, "A weight below it leaves the selection (mean weight is 1).", least=0)


@dataclass(frozen=True)
class UnlearnOptions(Checked):
    """Unlearning, the inner loop: weighted unlearning steps."""

    retain_loss: str = option("", "Retain term: none, nll, kl, l2; empty = what --loss says, else none.")
    retain_weight: float = option(1.0, "Weight λ of the retain term.", least=0)
    joint: float = option(
        0.0,
        "Weight μ of raising J during unlearning, on a share of the validation pairs; 0 = not at all. With "
        "npo, 20 gives pairs and negatives equal pull; `u2a align` logs that value for your data.",
        least=0,
    )
    joint_share: float = option(
        0.5,
        "Share of the validation prompts whose pairs --joint trains on; J and impact use the others.",
        above=0,
        most=0.9,
    )
    learning_rate: float = option(
        1e-4,
        "AdamW's learning rate; halved and tried again when the first measured point is past a budget or "
        "not finite.",
        above=0,
    )
    epochs: float = option(1.0, "Passes over the selected negatives in each outer step.", above=0)
    max_steps: int = option(0, "Optimiser steps in each outer step; overrides epochs when above 0.", least=0)
    batch_size: int = option(
        8,
        "Negatives in a micro-batch of all processes, that is in each optimiser step without accumulation.",
        least=1,
    )
    gradient_accumulation: int = option(1, "Micro-batches that make up one optimiser step.", least=1)
    gradient_checkpointing: bool = option(False, "Trade time for memory in the backward pass.")


@dataclass(frozen=True)
class OuterOptions(Checked):
    """Outer loop, budgets and guards."""

    outer_steps: int = option(2, "Rounds of scoring, weighting and unlearning.", least=1)
    measurements: int = option(4, "How often J, U and KL are measured in each inner run.", least=1)
    min_gain: float = option(
        1e-3,
        "Stop when an outer step raises J by no more than this; a run that gains no more is no better.",
    )
    halvings: int = option(
        4, "How often an outer step may halve the learning rate to keep its budgets.", least=0
    )
    kl_budget: float = option(
        0.1, "Largest KL(policy ‖ original) per retain token, in nats; 0 = no limit.", least=0
    )
    max_nll_rise: float = option(
        0.1, "Largest rise of the retain NLL, in nats per token; 0 = none at all.", least=0
    )
    utility_budget: float = option(
        0.0, "Largest fall of U that weights may cost; 0 = only the guards.", least=0
    )
    max_repetition_rise: float = option(
        MOST_REPETITION_RISE,
        "Stop when greedy answers to 16 validation prompts repeat themselves more than this above the "
        "original model's (share of repeated 4-grams, beyond noise); 1 = never, and measure only before and "
        "after.",
        least=0,
        most=1,
    )
    restart: bool = option(False, "Start every outer step from the original model again.")

    @property
    def guards_repetition(self) -> bool:
        """Whether answers are generated at every measured step: a share never rises by more than 1."""
        return self.max_repetition_rise < 1


@dataclass(frozen=True)
class CodeOptions:
    """Code that a YAML file names: whose code runs."""

    allow_code: bool = option(
        False,
        "Allow the YAML file to name code of your own, as module:Class. That code is run.",
        flag_only=True,
    )


@dataclass(frozen=True)
class RunOptions:
    """Run."""

    output: str = option("", "Run folder; must be empty or new.")
    seed: int = option(0, "Seed for all random choices.", least=0, most=LARGEST_SEED)


@dataclass(frozen=True)
class ResumeOptions:
    """Resuming: going on after an interruption."""

    resume: bool = option(False, "Continue the interrupted run in --output.")
