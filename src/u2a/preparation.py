"""Making the problem: everything tokenised, and the reference log-probs measured, at the original model."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from u2a.data.collate import tokenize_rows
from u2a.data.load import as_loaded
from u2a.data.render import Renderer
from u2a.losses import UnlearningLoss, built_loss
from u2a.losses.contract import check_loss
from u2a.objectives import MeanLogProb, Reward
from u2a.objectives.preference import Preference
from u2a.passes.dataset import Task, dataset_logprobs, silent
from u2a.passes.positions import usable_length
from u2a.problem import Problem
from u2a.types import UserError
from u2a.validation import objective_of_rows, shared_out

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.data.sources import Given
    from u2a.models.policy import Policy
    from u2a.scorers import Scorer


def prepare(
    policy: Policy,
    *,
    negatives: Given,
    preferences: Given,
    retain: Given | None = None,
    retain_loss: str | None = None,
    retain_weight: float = 1.0,
    loss: str | UnlearningLoss = "npo",
    loss_options: dict[str, Any] | None = None,
    objective: str | type = "preference",
    objective_options: dict[str, Any] | None = None,
    template: str = "auto",
    max_length: int = 512,
    max_tokens: int = 2048,
    keep_frozen_copy: bool = False,
    joint_share: float = 0.0,
    scorer: Scorer | None = None,
    seed: int = 0,
    task: Task = silent,
) -> Problem:
    """Tokenises everything and measures the reference log-probs, at φ₀.

    Args:
        policy: from `u2a.models.policy.load_policy`.
        negatives, preferences, retain: canonical rows from `u2a.data.load`, or what its loaders read. With
            the objective `nll`, `preferences` are retain rows, with `reward` prompts are enough. Without
            `retain`, U is taken on the preferred validation answers and overlaps with J; with `reward` on
            what the original model answers.
        retain_loss: the retain term, `none`, `nll`, `kl` or `l2`; None = what `loss` says, else `none`. For
            `nll` and `kl` every other retain row is kept for that term and the rest for U. retain_weight: its
            λ, for curvatures.
        loss: name in `LOSSES`, a name of the literature (`graddiff`: ga and the nll term; `ga+kl`), or a loss
            object. objective: name in `OBJECTIVES`, or a class of your own (docs/plugins.md).
        max_length: tokens of prompt and response; the default is lowered where the model has fewer positions.
        max_tokens: padded tokens of one forward pass.
        keep_frozen_copy: full fine-tuning only: keep a second copy of the model, so that KL can be measured.
        joint_share: share of the prompts of `preferences` whose pairs go to `Problem.joint` and not to J.
        scorer: of the objective `reward`; default what its options name. seed: of the responses it draws.

    Raises:
        UserError: an option is unknown or contradicts another, there is too little to share out, the model
            has fewer positions, or an argument is something else; says what makes it.

    Example:
        >>> from u2a import load_negatives, load_policy, load_preferences, prepare, tiny_model
        >>> bad = [{"prompt": "Hello!", "completion": "Go away."}, {"prompt": "Tea?", "completion": "No."}]
        >>> pairs = [{"prompt": "Coffee?", "chosen": "Yes, please.", "rejected": "No."}]
        >>> problem = prepare(
        ...     load_policy(tiny_model(), lora_rank=2),
        ...     negatives=load_negatives(bad), preferences=load_preferences(pairs),
        ... )
        >>> at = problem.measure()
        >>> round(at.objective, 4)  # −log 2: the policy is still the original model
        -0.6931
    """
    if joint_share > 0 and objective != "preference":
        raise UserError(f"--joint trains on preference pairs, and --objective {objective} has none")
    _refuse_no_policy(policy)
    negatives = as_loaded("negatives", negatives, "negatives")
    role = {"nll": "retain", "reward": "prompts"}.get(str(objective), "preferences")
    preferences = as_loaded(role, preferences, "preferences")
    retain = None if retain is None else as_loaded("retain", retain, "retain")
    built, retain_loss = built_loss(loss, loss_options, retain_loss)
    check_loss(built)
    renderer = Renderer(policy.tokenizer, template, usable_length(policy.model, max_length))
    negative_texts = tokenize_rows(negatives, renderer, role="negatives")
    pad_token_id = policy.tokenizer.pad_token_id or 0

    def measured(texts: Dataset, name: str) -> Tensor:
        with task(name, len(texts)) as progress:
            return dataset_logprobs(
                policy.model, texts, max_tokens=max_tokens, pad_token_id=pad_token_id, progress=progress
            )

    with policy.reference() if policy.has_adapter else nullcontext():
        reference = measured(negative_texts, "log-probs of the negatives")
        goal, preferred = objective_of_rows(
            objective,
            objective_options or {},
            preferences,
            renderer,
            lambda t: measured(t, "log-probs of the pairs"),
            scorer=scorer,
            seed=seed,
            device=policy.device,
        )
        if isinstance(goal, Reward) and retain is None:
            preferred = goal.sample(policy, max_tokens, task)
        joint = None
        if joint_share > 0 and isinstance(goal, Preference):
            joint, goal = shared_out(goal, preferences["prompt"], joint_share)
            preferred = goal.texts.select(range(len(goal.texts) // 2))
    retain_texts = None
    utility_texts = preferred if retain is None else tokenize_rows(retain, renderer, role="retain")
    if retain_loss in ("nll", "kl"):
        if retain is None or len(retain) < 2:
            raise UserError(f"--retain-loss {retain_loss} needs --retain with at least 2 rows")
        every_other = range(0, len(retain), 2), range(1, len(retain), 2)
        utility_texts, retain_texts = (utility_texts.select(part) for part in every_other)
    kept = keep_frozen_copy and not policy.has_adapter
    return Problem(
        policy=policy,
        loss=built,
        objective=goal,
        utility=MeanLogProb(utility_texts),
        retain_loss=retain_loss,
        retain_texts=retain_texts,
        negatives=negatives,
        negative_texts=negative_texts,
        reference=reference,
        renderer=renderer,
        max_tokens=max_tokens,
        pad_token_id=pad_token_id,
        frozen=copy.deepcopy(policy.model).eval().requires_grad_(False) if kept else None,
        retain_weight=retain_weight,
        joint=joint,
        joint_share=joint_share,
    )


def _refuse_no_policy(given: Any) -> None:
    if not hasattr(given, "has_adapter"):
        raise UserError(
            f"prepare takes a policy, not {type(given).__name__}: `load_policy` makes one of a model's name"
        )
