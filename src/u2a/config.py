"""Options: dataclasses free of torch, and the one way from YAML and flags to them.

A part's fields are its options. Every option has one flat name, the same in YAML (`kl_budget`) and as a flag
(`--kl-budget`). Options of losses, objectives and curvatures come from the fields of their own classes
(those that carry a help text), so that adding one of those adds its options everywhere.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from u2a.plain_yaml import plain_values
from u2a.types import UserError, shown

LARGEST_SEED = 2**31 - 1
"""So that the seeds derived from it stay below numpy's limit of 2³²."""


def option(
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    flag_only: bool = False,
) -> Any:
    """A dataclass field that is an option: its help stands in `--help`, the docs and the errors.

    Args:
        least, most: smallest and largest value; above: a bound that the value must exceed.
        flag_only: a YAML file alone cannot set it: a shared file must not run code, nor send text or keys.
    """
    bounds = {"least": least, "above": above, "most": most, "flag_only": flag_only}
    return field(default=default, metadata={"help": help, "choices": tuple(choices), **bounds})


@dataclass(frozen=True)
class DataOptions:
    """Where the rows are and how they become tokens."""

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
    """What only the final table reads."""

    test: str = option("", "Held-out pairs, only for the final table.")


@dataclass(frozen=True)
class ModelOptions:
    """The original model and what of it is trained."""

    model: str = option("", "Original model: folder, Hub id, GGUF file, adapter folder, or `demo`.")
    lora_rank: int = option(16, "Rank of the LoRA adapter; 0 = full fine-tuning.", least=0)
    lora_alpha: int = option(0, "LoRA's alpha; 0 = twice the rank.", least=0)
    lora_dropout: float = option(0.0, "LoRA's dropout while unlearning.", least=0)
    lora_targets: str = option("all-linear", "Modules that get an adapter: all-linear, or names by commas.")
    dtype: str = option("auto", "Number format.", ("auto", "float32", "bfloat16", "float16", "float64"))
    quantize: str = option("none", "4bit loads the frozen base in 4 bits (QLoRA).", ("none", "4bit"))
    attn_implementation: str = option(
        "auto",
        "Attention kernel; flash_attention_2 needs the package flash-attn, an accelerator and 16 bits.",
        ("auto", "eager", "sdpa", "flash_attention_2"),
    )
    device: str = option("", "Device, e.g. cuda:0 or cpu; empty = the best there is.")
    trust_remote_code: bool = option(
        False, "Run code that comes with the model. Only if you trust it.", flag_only=True
    )


@dataclass(frozen=True)
class ImpactOptions:
    """How impact is measured."""

    loss: str = option("npo", "Unlearning loss: ga, npo, simnpo, graddiff (ga + nll), ga+kl.")
    objective: str = option(
        "preference",
        "What alignment means: preference, nll of preferred texts, or reward of the model's own answers.",
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
        2048, "Most padded tokens of one forward pass when scoring or measuring.", least=1
    )


@dataclass(frozen=True)
class WeightOptions:
    """How impacts become weights."""

    select: str = option("50%", "How many negatives at most: a percentage, or a number.")
    eta: float = option(0.5, "Step of the mirror ascent on weights (no unit).", least=0)
    rho: float = option(0.0, "Sparsity: strength of the penalty on the square root of weights.", least=0)
    weight_floor: float = option(0.05, "A weight below it leaves the selection (mean weight is 1).", least=0)


@dataclass(frozen=True)
class UnlearnOptions:
    """The inner run: weighted unlearning steps."""

    retain_loss: str = option("", "Retain term: none, nll, kl, l2; empty = what --loss says, else none.")
    retain_weight: float = option(1.0, "Weight λ of the retain term.", least=0)
    joint: float = option(
        0.0,
        "Weight μ of climbing J beside the unlearning, on a share of the validation pairs; 0 = not at all.",
        least=0,
    )
    joint_share: float = option(
        0.5,
        "Share of the validation prompts whose pairs --joint trains on; J and impact use the others.",
        above=0,
        most=0.9,
    )
    learning_rate: float = option(
        1e-4, "AdamW's learning rate; halved when KL passes its budget at once.", above=0
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
class OuterOptions:
    """The outer loop, its budgets and guards."""

    outer_steps: int = option(2, "Rounds of scoring, weighting and unlearning.", least=1)
    measurements: int = option(4, "How often J, U and KL are measured in each inner run.", least=1)
    min_gain: float = option(1e-3, "Stop when an outer step raises J by no more than this.")
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
    max_repetition: float = option(
        0.0,
        "Largest share of repeated 4-grams in greedy answers to 8 validation prompts, unless the original's "
        "is larger; measured by generating at every measured step; 0 = not measured.",
        least=0,
        most=1,
    )
    restart: bool = option(False, "Begin every outer step at the original model again.")


@dataclass(frozen=True)
class RunOptions:
    """The run itself."""

    output: str = option("", "Run folder; must be empty or new.")
    seed: int = option(0, "Seed of everything that is drawn.", least=0, most=LARGEST_SEED)


@dataclass(frozen=True)
class ResumeOptions:
    """Going on after an interruption."""

    resume: bool = option(False, "Go on with an interrupted run in --output.")


@dataclass(frozen=True)
class OptionSpec:
    """One option as YAML, flags and docs see it."""

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...]
    owner: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    flag_only: bool = False

    @property
    def flag(self) -> str:
        """`kl_budget` -> `--kl-budget`."""
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True)
class Registry:
    """A choice among classes whose fields are options: `name` is the option that chooses."""

    name: str
    classes: Mapping[str, type]
    prefix: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)


class Schema:
    """The options of one command.

    Args:
        parts: option dataclasses.
        registries: choices whose classes bring options of their own.
        aside: keys that only a YAML file can hold, such as lists, passed on as they are; None = not given.
    """

    def __init__(
        self, parts: Sequence[type], registries: Sequence[Registry] = (), aside: Sequence[str] = ()
    ) -> None:
        self.parts, self.registries, self.aside = tuple(parts), tuple(registries), tuple(aside)
        self.specs: dict[str, OptionSpec] = {}
        for part in parts:
            self._add(part, part.__name__, "")
        for registry in registries:
            for cls in registry.classes.values():
                self._add(cls, registry.name, registry.prefix)

    def _add(self, cls: type, owner: str, prefix: str) -> None:
        hints = typing.get_type_hints(cls) if not prefix and owner in {p.__name__ for p in self.parts} else {}
        for f in dataclasses.fields(cls):
            if "help" not in f.metadata:
                continue
            name = prefix + f.name
            kind = _plain_type(hints.get(f.name, f.type))
            more = {
                key: f.metadata[key]
                for key in ("choices", "least", "above", "most", "flag_only")
                if key in f.metadata
            }
            spec = OptionSpec(
                name, kind, f.default, f.metadata["help"], owner=owner, **{"choices": (), **more}
            )
            known = self.specs.setdefault(name, spec)
            if known.owner != owner or known.type is not kind:
                raise ValueError(f"two options are called {name}: in {known.owner} and in {owner}")

    def resolve(self, config_file: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults, overridden by the YAML file, overridden by flags that were given (not None).

        Options of a class that was not chosen are left out of the result.

        Raises:
            UserError: unreadable YAML, unknown key, wrong type or choice, or an option that the chosen
                loss, objective or curvature does not have.
        """
        given = _read_yaml(config_file, [*self.specs, *self.aside]) if config_file else {}
        for name, spec in self.specs.items():
            alone = spec.flag_only and name in given and not flags.get(name)
            if alone and given[name] != spec.default:
                raise UserError(f"{name} in {config_file} counts only together with the flag {spec.flag}")
        given.update({key: value for key, value in flags.items() if value is not None})
        source = f"{config_file} or a flag" if config_file else "a flag"
        values = {
            name: self._checked(spec, given[name], source) if name in given else spec.default
            for name, spec in self.specs.items()
        }
        for registry in self.registries:
            self._keep_chosen(registry, values, given)
        return {**values, **{key: given.get(key) for key in self.aside}}

    def _keep_chosen(self, registry: Registry, values: dict[str, Any], given: Mapping[str, Any]) -> None:
        chosen = registry.aliases.get(values[registry.name], values[registry.name])
        if chosen not in registry.classes:
            names = ", ".join([*registry.classes, *registry.aliases])
            raise UserError(f"--{registry.name} {chosen[:80]}: unknown; take one of {names}")
        own = {registry.prefix + name for name in _option_names(registry.classes[chosen])}
        for cls in registry.classes.values():
            for name in (registry.prefix + n for n in _option_names(cls)):
                if name in own or name not in values:
                    continue
                if name in given:
                    raise UserError(
                        f"{self.specs[name].flag} means nothing for --{registry.name} {chosen}; leave it out"
                    )
                del values[name]

    def _checked(self, spec: OptionSpec, value: Any, source: str) -> Any:
        value = _as_number_or_text(spec, value)
        number: Any = value
        if type(value) is not spec.type:
            raise UserError(
                f"{spec.name} must be {_TYPE_WORDS[spec.type]}, got {shown(value)} ({type(value).__name__}) "
                f"in {source}"
            )
        if spec.type is str and not _is_text(number):
            raise UserError(
                f"{spec.flag} {shown(value)}: holds a character that no text or file name can hold"
            )
        if spec.choices and value not in spec.choices:
            raise UserError(f"{spec.flag} {number[:80]}: take one of {', '.join(spec.choices)}")
        # written so that NaN fails too
        if spec.least is not None and not number >= spec.least:
            raise UserError(f"{spec.flag} {shown(value)}: must be at least {spec.least:g}")
        if spec.above is not None and not number > spec.above:
            raise UserError(f"{spec.flag} {shown(value)}: must be above {spec.above:g}")
        if spec.most is not None and not number <= spec.most:
            raise UserError(f"{spec.flag} {shown(value)}: must be at most {spec.most:g}")
        if spec.type is float and not math.isfinite(number):
            raise UserError(f"{spec.flag} {value}: must be finite")
        return value

    def part(self, cls: type, values: Mapping[str, Any]) -> Any:
        """The option dataclass `cls` filled from resolved values."""
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})

    def chosen_options(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Constructor arguments of the class chosen in the registry `name`."""
        registry = next(r for r in self.registries if r.name == name)
        chosen = registry.aliases.get(values[name], values[name])
        return {n: values[registry.prefix + n] for n in _option_names(registry.classes[chosen])}


_TYPE_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _as_number_or_text(spec: OptionSpec, value: Any) -> Any:
    """A whole number where a fraction is wanted, 1e-4, which YAML reads as text, and a bare count, as what
    the option takes; everything else as it is, for the check of types to refuse."""
    try:
        if spec.type is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            return float(value)
        if spec.name in ("select", "subset_share") and type(value) is int:
            return str(value)
    except (ValueError, OverflowError):  # not a number, or one too large
        pass
    return value


def _is_text(value: str) -> bool:
    """Without NUL and half surrogate pairs, at which files and folders of that name fail."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _option_names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if "help" in f.metadata]


def _plain_type(annotation: Any) -> type:
    """The type behind an annotation, which `from __future__ import annotations` may have left as text."""
    if isinstance(annotation, str):
        return {"float": float, "int": int, "bool": bool, "str": str}[annotation]
    if isinstance(annotation, types.UnionType):
        raise TypeError(f"options have one plain type, not {annotation}")
    return annotation


def _read_yaml(path: str, known: Sequence[str]) -> dict[str, Any]:
    file = Path(path)
    try:
        content = plain_values(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--config {path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--config {path}: not readable YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values, one option a line, e.g. `loss: npo`")
    unknown = [key for key in content if key not in known]
    if unknown:
        near = _nearest(unknown[0], known) if isinstance(unknown[0], str) and len(unknown[0]) < 80 else ""
        raise UserError(f"{path}: unknown key {shown(unknown[0])}{near}; `--help` lists the options")
    return content


def _nearest(name: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
