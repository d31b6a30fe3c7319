"""From resolved options to a prepared problem: data first, then the run folder, then the model."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2a import processes
from u2a.commands.requirements import check_choices, enough_retain_rows, require
from u2a.commands.terminal import Bars, printable, say
from u2a.config import DataOptions, ImpactOptions, ModelOptions, OuterOptions
from u2a.cost_model import SCORING_PASSES
from u2a.schema import Schema
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.data.validate import CountTokens, Finding
    from u2a.models.policy import Policy
    from u2a.objectives import Objective, Reward
    from u2a.problem import Problem

log = logging.getLogger("u2a")

FEW_PAIRS = 30
"""Below it, J is so noisy that the user is told."""


@dataclass
class Data:
    """The user's rows, loaded and checked; `warnings` are what people should know."""

    negatives: Dataset
    preferences: Dataset
    test: Dataset | None
    retain: Dataset | None
    warnings: list[str] = field(default_factory=list)


def validation_role(objective: str) -> str:
    """What the rows of `--preferences` are: preferred answers for nll, prompts for reward, else pairs."""
    return {"nll": "retain", "reward": "prompts"}.get(objective, "preferences")


def load_validation(objective: str, source: str) -> Dataset:
    """What `--preferences` names.

    Raises:
        UserError: the file is missing or unusable.
    """
    from u2a.data import load

    loaders = {"retain": load.load_retain, "prompts": load.load_prompts, "preferences": load.load_preferences}
    return loaders[validation_role(objective)](source)


def findings_of(
    objective: str,
    negatives: Dataset | None,
    preferences: Dataset | None,
    test: Dataset | None,
    retain: Dataset | None,
    *,
    files: Mapping[str, str],
    token_limit: int | None = None,
    count_tokens: CountTokens | None = None,
) -> list[Finding]:
    """`check_data` of rows of which `preferences` are what that objective takes."""
    from u2a.data.validate import check_data

    limit: dict[str, Any] = {"token_limit": token_limit, "count_tokens": count_tokens}
    if objective != "nll" or preferences is None:
        return check_data(negatives, preferences, test, retain, files=files, **limit)
    found = check_data(negatives, None, test, retain, files=files, **limit)
    named = {"negatives": files.get("negatives", ""), "retain": files["preferences"]}
    more = check_data(negatives, retain=preferences, files=named, **limit)
    return found + [finding for finding in more if finding not in found]


def load_data(values: Mapping[str, Any], schema: Schema, head: Dataset | None = None) -> Data:
    """Loads and checks the rows that the options name, before any model is loaded.

    Args:
        head: first negatives of a pool, checked already, in place of those that `--negatives` names.

    Raises:
        UserError: a file is missing or unusable, or an option that is needed was not given.
    """
    from u2a.data.load import load_negatives, load_preferences, load_prompts, load_retain

    require(values)
    check_choices(values, schema)
    negatives = load_negatives(values["negatives"]) if head is None else head
    known = negatives if head is None else None
    reward = values["objective"] == "reward"
    preferences = load_validation(values["objective"], values["preferences"])
    # `verify` measures J on them, the others compare the two answers
    wanted = load_prompts if reward and "subsets" in values else load_preferences
    test = wanted(values["test"]) if values.get("test") else None
    retain = load_retain(values["retain"]) if values["retain"] else None
    enough_retain_rows(values, retain)
    files = {r: values[r] for r in ("negatives", "preferences", "test", "retain") if values.get(r)}
    findings = findings_of(values["objective"], known, preferences, test, retain, files=files)
    data = Data(negatives, preferences, test, retain)
    for finding in findings:
        if finding.fatal:
            raise UserError(
                f"{finding.file}, row {finding.row}: {finding.message}. `u2a check` lists all (give it the "
                "same --objective)."
            )
    kinds: dict[str, int] = {}
    for finding in findings:
        kinds[finding.kind] = kinds.get(finding.kind, 0) + 1
    data.warnings += [
        f"{count} × {kind} in the data; `u2a check` names the rows" for kind, count in kinds.items()
    ]
    if (few := _few_pairs(len(preferences), values)) is not None:
        data.warnings.append(few)
    if retain is None:
        data.warnings.append(
            "no --retain: U is measured on what the original model answers to the validation prompts; near "
            "that model its slope is noise, and so are utility costs"
            if reward
            else "no --retain: U is measured on the preferred validation answers and so overlaps with J"
        )
    return data


def _few_pairs(count: int, values: Mapping[str, Any]) -> str | None:
    """A warning where J is measured on few rows, those that `--joint` trains on not counted."""
    joint = values.get("joint", 0) > 0
    left = round(count * (1 - values["joint_share"])) if joint else count
    if left >= FEW_PAIRS:
        return None
    of = f" of {count}: --joint trains on the others" if joint else ""
    return f"only {left} validation rows{of}: J and impact are noisy below {FEW_PAIRS}"


def load_options(values: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """What `load_policy` takes beside the source."""
    options: ModelOptions = schema.part(ModelOptions, values)
    attention = options.attn_implementation
    return {
        "lora_rank": options.lora_rank,
        "lora_alpha": options.lora_alpha or None,
        "lora_dropout": options.lora_dropout,
        "lora_targets": options.lora_targets,
        "dtype": options.dtype,
        "quantize": options.quantize,
        "attn_implementation": None if attention == "auto" else attention,
        "seed": values["seed"],
        "device": options.device or None,
        "trust_remote_code": options.trust_remote_code,
    }


def load_model(values: Mapping[str, Any], schema: Schema) -> Policy:
    """The policy that the model options name; spread over the processes where their launcher asks for it."""
    from u2a.models.policy import load_policy
    from u2a.models.sharding import is_asked_for

    spread = is_asked_for()
    with processes.as_one():
        policy = load_policy(values["model"], on_cpu=spread, **load_options(values, schema))
    if spread:
        policy.shard()
    return policy


def build_problem(
    values: Mapping[str, Any], schema: Schema, data: Data, policy: Policy, bars: Bars
) -> Problem:
    """Tokenises and measures the reference log-probs; says how long one pass over the negatives takes."""
    from u2a.losses import resolve_loss
    from u2a.preparation import prepare

    options: ImpactOptions = schema.part(ImpactOptions, values)
    rows: DataOptions = schema.part(DataOptions, values)
    loss, retain_loss = resolve_loss(options.loss, values.get("retain_loss") or None)
    full = not policy.has_adapter
    budget = schema.part(OuterOptions, values).kl_budget if "kl_budget" in values else 0.0
    kl_in_j = options.objective == "reward" and values["objective_beta"] > 0
    keep_copy = full and (budget > 0 or retain_loss == "kl" or kl_in_j)
    if keep_copy:
        say("Full fine-tuning with a KL budget or term keeps a second, frozen copy of the model.")
    begin = time.perf_counter()
    problem = prepare(
        policy,
        negatives=data.negatives,
        preferences=data.preferences,
        retain=data.retain,
        retain_loss=retain_loss,
        retain_weight=values.get("retain_weight", 1.0),
        loss=loss,
        loss_options=schema.chosen_options("loss", values),
        objective=options.objective,
        objective_options=schema.chosen_options("objective", values),
        template=rows.template,
        max_length=rows.max_length,
        max_tokens=options.score_tokens,
        keep_frozen_copy=keep_copy,
        seed=values["seed"],
        joint_share=values["joint_share"] if values.get("joint") else 0.0,
        task=bars.task,
    )
    log.info("prepared in %.1f s", time.perf_counter() - begin)
    return problem


@dataclass(frozen=True)
class Sizes:
    """Tokens (prompt and response) of each role: what the cost estimate is made of. `curvature`: of the texts
    that the default curvature is measured on. `drawing`: of generating J's texts, if they are generated."""

    negatives: int
    validation: int
    retain: int
    curvature: int
    drawing: int = 0

    @classmethod
    def of(cls, problem: Problem) -> Sizes:
        """Counts the tokens of a prepared problem."""
        from u2a.impact.curvature import Diagonal

        kept = problem.utility.texts if problem.retain_texts is None else problem.retain_texts
        few = min(1.0, Diagonal.rows / len(kept))
        validation, drawing = tokens_of_j(problem.objective)
        return cls(
            _tokens(problem.negative_texts),
            validation,
            _tokens(problem.utility.texts),
            round(few * _tokens(kept)),
            drawing,
        )

    def scoring(self, method: str) -> float:
        """Forward-pass tokens of scoring J and U once; a backward pass counts as one forward pass."""
        passes = 1 + SCORING_PASSES["exact" if method == "auto" else method]
        gradients = 2 * (self.validation + self.retain + self.curvature)
        return self.negatives * passes + gradients + self.measuring

    @property
    def measuring(self) -> float:
        """Forward-pass tokens of measuring J, U and KL once."""
        return self.drawing + self.validation + 2 * self.retain


def tokens_of_j(objective: Objective | Reward) -> tuple[int, int]:
    """Tokens of J's texts, and of getting them where they are drawn, at most and without the scorer's."""
    from u2a.objectives import Reward

    if isinstance(objective, Reward):
        return objective.most_tokens, 2 * objective.most_tokens
    return _tokens(objective.texts), 0


def _tokens(texts: Dataset) -> int:
    return sum(len(ids) for ids in texts["input_ids"])


def seconds_per_token(problem: Problem) -> float:
    """Times one forward pass over one small batch of negatives at the current φ, shared by all processes."""
    texts = problem.negative_texts.select(range(min(8, len(problem.negative_texts))))
    tokens = sum(len(ids) for ids in texts["input_ids"])
    problem.logprobs(texts)
    begin = time.perf_counter()
    problem.logprobs(texts)
    return (time.perf_counter() - begin) / tokens / processes.count()


def minutes(seconds: float) -> str:
    """`95` -> `1 min 35 s`."""
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def say_warnings(warnings: list[str]) -> None:
    """Logs warnings: the terminal and the run's log file both show them."""
    for warning in warnings:
        log.warning("%s", printable(warning))


def output_path(values: Mapping[str, Any]) -> Path:
    """The run folder that the options name."""
    return Path(values["output"]).expanduser()
