"""Reward: what a scorer says of the answers, and how often it prefers them to the original model's."""

from __future__ import annotations

import json
from collections.abc import Callable
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
    TRL's RewardTrainer makes (Ouyang et al. 2022, arXiv 2203.02155), by a Python function of your own, or by
    a server, only with `--send-to-scorer`: `reward`, mean score in the scorer's own unit, ↑; `reward_win`,
    share of prompts whose answer scores higher than the original model's, ties half, ↑ (0.5 for the
    original)."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("prompts",),)
    asks: ClassVar[tuple[str, ...]] = ("reward_model", "reward_url", "reward_function")
    consent: ClassVar[str] = "send_to_scorer"

    reward_model: str = option("", "reward: a reward model, folder or Hub id; empty = leave it out.")
    reward_url: str = option(
        "", "reward: a scorer's address instead of a model; docs/evaluation.md has what it is asked."
    )
    reward_function: str = option(
        "", "reward: a Python function instead of a model, module:function. It runs.", flag_only=True
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
            UserError: several are named; `reward_model` is no sequence-classification model with one output,
                or lacks files; there is no `reward_function`; the server behind `reward_url` gives no score.
        """
        from u2a.scorers import function_scorer, refuse_other_kinds

        named = [f"--{name.replace('_', '-')}" for name in self.asks if getattr(self, name)]
        if len(named) > 1:
            raise UserError(f"{' and '.join(named)}: name only one of them")
        if self.reward_url:
            self.scorer.check()
        elif self.reward_function:
            function_scorer(self.reward_function, "--reward-function")
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
        if material.prompts is None or not any(getattr(self, name) for name in self.asks):
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

    @cached_property
    def _known(self) -> dict[str, Array]:
        """Scores so far, by prompts and answers: every model is compared with the original's."""
        return {}

    def _scores(self, subject: Subject, prompts: list[list[Message]]) -> Array:
        answers = [answer.text for answer in subject.answers("prompts", prompts)]
        key = json.dumps([prompts, answers])
        if key not in self._known:
            with subject.task(f"{subject.name}: rewards", len(prompts)) as progress:
                self._known[key] = self._scored(subject, prompts, answers, progress)
        return self._known[key]

    def _scored(
        self,
        subject: Subject,
        prompts: list[list[Message]],
        answers: list[str],
        progress: Callable[[int], None] | None,
    ) -> Array:
        from u2a.scorers import BATCH, function_scorer, model_scorer

        if self.reward_url:
            return self.scorer(prompts, answers, progress)
        if self.reward_function:
            return _checked(
                function_scorer(self.reward_function, "--reward-function")(prompts, answers), answers
            )
        score, found = model_scorer(self.reward_model, subject.policy.device), []
        for begin in range(0, len(prompts), BATCH):
            found.append(score(prompts[begin : begin + BATCH], answers[begin : begin + BATCH]))
            if progress:
                progress(len(found[-1]))
        return np.concatenate(found)


def _checked(scores: Array, answers: list[str]) -> Array:
    if scores.shape != (len(answers),) or not np.isfinite(scores).all():
        raise UserError(
            f"--reward-function must give {len(answers)} finite numbers, one an answer; it gave shape "
            f"{scores.shape}" + ("" if np.isfinite(scores).all() else ", some of them not finite")
        )
    return scores
