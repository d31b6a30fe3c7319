"""Which options each command takes."""

from __future__ import annotations

from dataclasses import dataclass

from u2a.config import (
    DataOptions,
    ImpactOptions,
    ModelOptions,
    OuterOptions,
    Registry,
    ResumeOptions,
    RunOptions,
    Schema,
    TestOptions,
    UnlearnOptions,
    WeightOptions,
    option,
)
from u2a.impact.curvature import CURVATURES
from u2a.losses import COMPOSED, LOSSES
from u2a.objectives import OBJECTIVES

REGISTRIES = (
    Registry("loss", LOSSES, aliases={name: loss for name, (loss, _) in COMPOSED.items()}),
    Registry("objective", OBJECTIVES, prefix="objective_"),
    Registry("curvature", CURVATURES, prefix="curvature_"),
)


@dataclass(frozen=True)
class MergeOptions:
    """What `align` writes besides the adapter."""

    merge: bool = option(False, "Also write the full model with the adapter merged in, to merged/.")


@dataclass(frozen=True)
class CheckOptions:
    """What `check` reads; nothing is written."""

    negatives: str = option("", "Bad answers: file, folder, Hub id, or - for standard input.")
    preferences: str = option("", "Preference pairs for validation.")
    test: str = option("", "Held-out pairs.")
    retain: str = option("", "Good texts to keep.")
    model: str = option("", "Model whose tokenizer counts tokens; without it, length is not checked.")
    template: str = option("auto", "Chat template: the tokenizer's own, or raw text.", ("auto", "none"))
    max_length: int = option(512, "Longest prompt + response, in tokens.", least=2)


@dataclass(frozen=True)
class SplitOptions:
    """How `split` cuts a file of preference pairs."""

    output: str = option("", "Folder for the parts; must be empty or new.")
    seed: int = option(0, "Seed of the split.", least=0)
    validation: int = option(64, "Prompts whose pairs are for validation.", least=1)
    test: int = option(128, "Prompts whose pairs are held out.", least=1)
    train: int = option(0, "Training prompts for the mixture; 0 = all the rest.", least=0)
    chosen_fraction: float = option(0.35, "Share of good answers in the original model's mixture.")


@dataclass(frozen=True)
class DemoOptions:
    """The demo."""

    output: str = option("u2a-demo", "Run folder; must be empty or new.")
    seed: int = option(0, "Seed of everything that is drawn.", least=0)


CHECK = Schema((CheckOptions,))
SPLIT = Schema((SplitOptions,))
IMPACT = Schema((DataOptions, ModelOptions, ImpactOptions, RunOptions), REGISTRIES)
ALIGN = Schema(
    (
        DataOptions,
        TestOptions,
        ModelOptions,
        ImpactOptions,
        WeightOptions,
        UnlearnOptions,
        OuterOptions,
        RunOptions,
        ResumeOptions,
        MergeOptions,
    ),
    REGISTRIES,
)
DEMO = Schema((DemoOptions,))
