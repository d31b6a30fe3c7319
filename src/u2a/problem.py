"""The prepared problem: what stays fixed while φ moves, and how J, U and KL are measured at the current φ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from u2a import processes
from u2a.data.render import Renderer
from u2a.logprobs import evaluating, kl_per_token, response_logits
from u2a.losses import UnlearningLoss
from u2a.objectives import DrawnReward, MeanLogProb, Objective, Reward
from u2a.objectives.preference import Preference
from u2a.passes.dataset import Progress, Task, dataset_logprobs, fitting_apart, refuse_non_finite, silent
from u2a.passes.memory import working
from u2a.types import GuardStop

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.models.policy import Policy
    from u2a.ngrams import AnswerShares


@dataclass(frozen=True)
class Measurement:
    """J, U and KL at one φ.

    `objective` J and `utility` U as in docs/explanation/mathematics.md, higher = better; `kl` is
    KL(π_φ ‖ π_ref) in nats per response token of the utility's texts, exact over the vocabulary (None without
    a reference); `negative_logprob` is the mean log-prob per token of the negatives (None unless asked for).
    `s_objective`, `s_utility` and `s_negatives` are the log-probs behind them, one for each text, in the
    order of the texts: scoring at the same φ needs them again. `drawn` is the objective that `s_objective`
    belongs to where responses had to be drawn for it, else None: the problem's own. `answers` are the
    shares of greedy ones (`u2a.answers`), None unless a guard is on them.
    """

    objective: float
    utility: float
    kl: float | None
    s_objective: Tensor = field(repr=False)
    s_utility: Tensor = field(repr=False)
    s_negatives: Tensor | None = field(default=None, repr=False)
    negative_logprob: float | None = None
    drawn: DrawnReward | None = field(default=None, repr=False)
    answers: AnswerShares | None = field(default=None, repr=False)

    @property
    def figures(self) -> dict[str, float | None]:
        """What goes into `metrics.jsonl`."""
        figures = {"objective": self.objective, "utility": self.utility, "kl": self.kl}
        if self.negative_logprob is not None:
            figures["negative_logprob"] = self.negative_logprob
        if self.drawn is not None:
            figures["objective_se"] = self.drawn.standard_error
        if self.answers is not None:
            figures["repetition"] = float(self.answers.repetition.mean())
            figures["overlap"] = float(self.answers.overlap.mean())
        return figures


@dataclass
class Problem:
    """Everything the outer loop needs, tokenised and with reference log-probs measured.

    `negatives` are the canonical rows, `negative_texts` the same rows as tokens; `reference` (N,) their
    log-probs s_ref under the original model. `objective` is J, or what draws it. `retain_loss` names the
    retain term of the inner problem and `retain_texts` is what it trains on: never the texts that U is
    measured on. `retain_weight` λ is its weight, in inner runs and in curvatures. `joint` is J on
    the pairs that an inner run may train on, `joint_share` of the prompts: none of them is in `objective`.
    """

    policy: Policy
    loss: UnlearningLoss
    objective: Objective | Reward
    utility: MeanLogProb
    retain_loss: str
    retain_texts: Dataset | None
    negatives: Dataset
    negative_texts: Dataset
    reference: Tensor
    renderer: Renderer
    max_tokens: int
    pad_token_id: int
    frozen: nn.Module | None = None
    retain_weight: float = 1.0
    joint: Preference | None = None
    joint_share: float = 0.0

    def logprobs(self, texts: Dataset, progress: Progress | None = None) -> Tensor:
        """s (N,) of tokenised texts at the current φ."""
        return dataset_logprobs(
            self.policy.model,
            texts,
            max_tokens=self.max_tokens,
            pad_token_id=self.pad_token_id,
            progress=progress,
        )

    def reference_logprobs(self, texts: Dataset) -> Tensor:
        """s (N,) of tokenised texts under the original model."""
        with self.reference_model() as model:
            return dataset_logprobs(model, texts, max_tokens=self.max_tokens, pad_token_id=self.pad_token_id)

    def objective_here(
        self, task: Task = silent, objective: Objective | Reward | None = None
    ) -> tuple[Objective, Tensor]:
        """J around the current φ, its responses drawn here if need be, and the log-probs s (N,) of its texts;
        `objective` is one on other rows."""
        objective = objective or self.objective
        if isinstance(objective, Reward):
            drawn = objective.draw(self.policy, self.logprobs, self.reference_logprobs, self.max_tokens, task)
            return drawn, drawn.s
        with task("measuring J", len(objective.texts)) as progress:
            return objective, self.logprobs(objective.texts, progress)

    @property
    def lengths(self) -> Tensor:
        """|y_i| of the negatives, (N,) int64."""
        return torch.tensor(self.negative_texts["n_tokens"])

    @property
    def prior(self) -> np.ndarray:
        """Prior weights of the negatives, (N,) float64."""
        return np.asarray(self.negatives["weight"], dtype=np.float64)

    def objective_of(self, at: Measurement) -> Objective:
        """J as a function of `at.s_objective`."""
        objective = at.drawn or self.objective
        if isinstance(objective, Reward):
            raise ValueError("a measurement of drawn responses holds them: take it from `measure`")
        return objective

    def measure(self, task: Task = silent, *, negatives: bool = False) -> Measurement:
        """J, U and KL at the current φ; with `negatives` also how likely they still are.

        Raises:
            GuardStop: a log-prob is not finite.
        """
        with concerning("measuring J on the validation rows"):
            objective, s_objective = self.objective_here(task)
        rows = len(self.utility.texts) + (len(self.negative_texts) if negatives else 0)
        with task("measuring U and KL", rows) as progress:
            with concerning("measuring U and KL on the retain rows"):
                s_utility, kl = self._utility_and_kl(progress)
            s_negatives, per_token = None, None
            if negatives:
                with concerning("measuring the negatives"):
                    s_negatives = self.logprobs(self.negative_texts, progress)
                per_token = float((s_negatives.double() / self.lengths).mean())
        return Measurement(
            objective=_finite_mean(objective.terms(s_objective.double()), "J"),
            utility=_finite_mean(self.utility.terms(s_utility.double()), "U"),
            kl=kl,
            s_objective=s_objective,
            s_utility=s_utility,
            s_negatives=s_negatives,
            negative_logprob=per_token,
            drawn=objective if isinstance(objective, DrawnReward) else None,
        )

    def measure_negatives(self, task: Task = silent) -> Tensor:
        """s (N,) of the negatives at the current φ."""
        with task("log-probs of the negatives", len(self.negative_texts)) as progress:
            return self.logprobs(self.negative_texts, progress)

    def _utility_and_kl(self, progress: Progress | None) -> tuple[Tensor, float | None]:
        if not self.policy.has_adapter and self.frozen is None:
            return self.logprobs(self.utility.texts, progress), None
        texts, model = self.utility.texts, self.policy.model
        s = torch.full((len(texts),), float("nan"), dtype=torch.float64)
        divergence, own = torch.zeros_like(s), torch.zeros(len(texts), dtype=torch.bool)
        sizes = {"max_tokens": self.max_tokens, "pad_token_id": self.pad_token_id}
        with evaluating(model), torch.no_grad(), working(model):
            for attempt in fitting_apart(model, texts, **sizes, kind="measuring U and KL", deal=True):
                with attempt as batch:
                    logits, targets, example = response_logits(model, batch)
                    with self.reference_model() as reference:
                        reference_logits = response_logits(reference, batch)[0]
                    values = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].double().cpu()
                    apart = kl_per_token(logits, reference_logits).double().cpu()
                    where, none = batch.index.cpu(), torch.zeros(len(batch.index), dtype=torch.float64)
                    if attempt.idle:
                        continue
                    s[where] = none.index_add(0, example.cpu(), values)
                    divergence[where] = none.index_add(0, example.cpu(), apart)
                    own[where] = True
                    if progress:
                        progress(attempt.done)
        s, divergence = processes.put_together(s, own), processes.put_together(divergence, own)
        refuse_non_finite(s, texts, "log-prob")
        refuse_non_finite(divergence, texts, "KL from the original model")
        return s, float(divergence.sum()) / sum(texts["n_tokens"])

    def reference_model(self) -> AbstractContextManager[Any]:
        """The original model within a block: adapters off, or the frozen copy of full fine-tuning."""
        if self.frozen is not None:
            return nullcontext(self.frozen)
        return self.policy.reference()


@contextmanager
def concerning(what: str) -> Iterator[None]:
    """Within, a guard that stops also says what was under way, and so in which file its row is."""
    try:
        yield
    except GuardStop as stop:
        raise GuardStop(f"{what}: {stop}") from stop


def _finite_mean(terms: Tensor, what: str) -> float:
    """The mean of `terms` (N,).

    Raises:
        GuardStop: one is not finite, though the log-probs behind it are.
    """
    bad = (~torch.isfinite(terms)).nonzero()
    if len(bad):
        raise GuardStop(
            f"{what} is not finite: its term number {int(bad[0])} of {len(terms)}, in the order of its rows, "
            f"is {float(terms[int(bad[0])])}"
        )
    return float(terms.mean())
