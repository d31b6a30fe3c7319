"""Reward: what a scorer says of the answers, and how often it prefers them to the original model's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from u2a.config import option
from u2a.evaluation.figure import Array, Figure
from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.evaluation.http_scorer import HttpScorer
    from u2a.evaluation.material import Material, Plan
    from u2a.evaluation.subject import Subject
    from u2a.types import Message


@dataclass(frozen=True)
class Reward:
    """Of the answers to the held-out prompts, by a sequence-classification model with one output, such as
    TRL's RewardTrainer makes (Ouyang et al. 2022, arXiv 2203.02155), or by a server of your own, only with
    `--send-to-scorer`: `reward`, mean score in the scorer's own unit, ↑; `reward_win`, share of prompts whose
    answer scores higher than the original model's, ties half, ↑ (0.5 for the original)."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("prompts",),)
    asks: ClassVar[tuple[str, ...]] = ("reward_model", "reward_url")
    consent: ClassVar[str] = "send_to_scorer"

    reward_model: str = option("", "reward: a reward model, folder or Hub id; empty = leave it out.")
    reward_url: str = option(
        "", "reward: a scorer's address instead of a model; docs/evaluation.md has what it is asked."
    )
    reward_key_variable: str = option(
        "", "reward: environment variable with the key for --reward-url, if any.", flag_only=True
    )
    send_to_scorer: bool = option(
        False, "reward: allow prompts and answers to be sent to --reward-url, in full.", flag_only=True
    )

    @cached_property
    def scorer(self) -> HttpScorer:
        """The scorer behind `reward_url`, with what it has scored so far.

        Raises:
            UserError: the URL is none, or holds more than an address.
        """
        from u2a.evaluation.http_scorer import HttpScorer

        try:
            return HttpScorer(self.reward_url, self.send_to_scorer, self.reward_key_variable)
        except UserError as error:
            raise UserError(f"--reward-url: {error}") from None

    def check(self) -> None:
        """Looks at the reward model's files, or with consent has the server score a greeting, so that what is
        no scorer is found before any other model is loaded.

        Raises:
            UserError: both are named; `reward_model` is no sequence-classification model with one output; the
                server behind `reward_url` gives no score.
        """
        from u2a.scorers import refuse_other_kinds

        if self.reward_model and self.reward_url:
            raise UserError("--reward-model and --reward-url: name only one of them")
        if self.reward_url:
            self.scorer.check()
        else:
            refuse_other_kinds(self.reward_model, "--reward-model")

    def outlook(self, plan: Plan) -> str:
        """What would be sent where, at most; "" = nothing."""
        if not self.reward_url:
            return ""
        return self.scorer.describe(plan.models * len(plan.prompts.get("prompts", [])))

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """Both, a value a prompt.

        Raises:
            UserError: the scorer gives no scores, or would have to be sent text without `send_to_scorer`.
        """
        if material.prompts is None or not (self.reward_model or self.reward_url):
            return []
        own = self._scores(subject, material.prompts)
        original = subject.original or subject
        theirs = own if original is subject else self._scores(original, material.prompts)
        said, before = (
            [answer.text for answer in each.answers("prompts", material.prompts)]
            for each in (subject, original)
        )
        # equal answers, too: beside others in its batch, one is scored a little otherwise
        ties = (own == theirs) | np.array([a == b for a, b in zip(said, before, strict=True)], bool)
        wins = np.where(ties, 0.5, own > theirs)
        return [
            Figure("reward", own, "higher", "the scorer's"),
            Figure("reward_win", wins, "higher", "share"),
        ]

    def _scores(self, subject: Subject, prompts: list[list[Message]]) -> Array:
        from u2a.scorers import BATCH, model_scorer

        answers = [answer.text for answer in subject.answers("prompts", prompts)]
        with subject.task(f"{subject.name}: rewards", len(prompts)) as progress:
            if self.reward_url:
                return self.scorer(prompts, answers, progress)
            score, found = model_scorer(self.reward_model, subject.policy.device), []
            for begin in range(0, len(prompts), BATCH):
                found.append(score(prompts[begin : begin + BATCH], answers[begin : begin + BATCH]))
                if progress:
                    progress(len(found[-1]))
        return np.concatenate(found)
