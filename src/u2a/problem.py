"""The prepared problem: what stays fixed while φ moves, and how J, U and KL are measured at the current φ."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from u2a.data.collate import length_sorted_batches, tokenize_rows
from u2a.data.render import Renderer
from u2a.logprobs import (
    Progress,
    dataset_logprobs,
    evaluating,
    kl_per_token,
    refuse_non_finite,
    response_logits,
)
from u2a.losses import LOSSES, UnlearningLoss
from u2a.objectives import OBJECTIVES, MeanLogProb, Objective
from u2a.types import GuardStop, UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.models import Policy

Task = Callable[[str, int], AbstractContextManager[Progress | None]]
"""Shows one piece of work: called with its name and number of rows, gives what to call as rows are done."""


def silent(_name: str, _total: int) -> AbstractContextManager[None]:
    """A `Task` that shows nothing."""
    return nullcontext()


@dataclass(frozen=True)
class Measurement:
    """J, U and KL at one φ.

    `objective` J and `utility` U as in design section 2, higher = better; `kl` is KL(π_φ ‖ π_ref) in nats
    per response token of the utility's texts, exact over the vocabulary (None without a reference);
    `negative_logprob` is the mean log-prob per token of the negatives (None unless asked for).
    `s_objective`, `s_utility` and `s_negatives` are the log-probs behind them, one for each text, in the
    order of the texts: scoring at the same φ needs them again.
    """

    objective: float
    utility: float
    kl: float | None
    s_objective: Tensor
    s_utility: Tensor
    s_negatives: Tensor | None = None
    negative_logprob: float | None = None

    @property
    def figures(self) -> dict[str, float | None]:
        """What goes into `metrics.jsonl`."""
        figures = {"objective": self.objective, "utility": self.utility, "kl": self.kl}
        if self.negative_logprob is not None:
            figures["negative_logprob"] = self.negative_logprob
        return figures


@dataclass
class Problem:
    """Everything the outer loop needs, tokenised and with reference log-probs measured.

    `negatives` are the canonical rows, `negative_texts` the same rows as tokens; `reference` (N,) their
    log-probs s_ref under the original model. `retain_loss` names the retain term of the inner problem and
    `retain_texts` is what it trains on: never the texts that U is measured on. `retain_weight` λ is what
    curvatures take for it; the inner run has its own in `UnlearnOptions`.
    """

    policy: Policy
    loss: UnlearningLoss
    objective: Objective
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

    def logprobs(self, texts: Dataset, progress: Progress | None = None) -> Tensor:
        """s (N,) of tokenised texts at the current φ."""
        return dataset_logprobs(
            self.policy.model,
            texts,
            max_tokens=self.max_tokens,
            pad_token_id=self.pad_token_id,
            progress=progress,
        )

    @property
    def lengths(self) -> Tensor:
        """|y_i| of the negatives, (N,) int64."""
        return torch.tensor(self.negative_texts["n_tokens"])

    @property
    def prior(self) -> np.ndarray:
        """Prior weights of the negatives, (N,) float64."""
        return np.asarray(self.negatives["weight"], dtype=np.float64)

    def measure(self, task: Task = silent, *, negatives: bool = False) -> Measurement:
        """J, U and KL at the current φ; with `negatives` also how likely they still are.

        Raises:
            GuardStop: a log-prob is not finite.
        """
        rows = len(self.objective.texts) + len(self.utility.texts)
        rows += len(self.negative_texts) if negatives else 0
        with task("measuring J, U and KL", rows) as progress:
            s_objective = self.logprobs(self.objective.texts, progress)
            s_utility, kl = self._utility_and_kl(progress)
            s_negatives, per_token = None, None
            if negatives:
                s_negatives = self.logprobs(self.negative_texts, progress)
                per_token = float((s_negatives.double() / self.lengths).mean())
        return Measurement(
            objective=float(self.objective.terms(s_objective.double()).mean()),
            utility=float(self.utility.terms(s_utility.double()).mean()),
            kl=kl,
            s_objective=s_objective,
            s_utility=s_utility,
            s_negatives=s_negatives,
            negative_logprob=per_token,
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
        divergence, tokens = 0.0, 0
        batches = length_sorted_batches(texts, max_tokens=self.max_tokens, pad_token_id=self.pad_token_id)
        with evaluating(model), torch.no_grad():
            for batch in batches:
                on_device = batch.to(self.policy.device)
                logits, targets, example = response_logits(model, on_device)
                with self.reference_model() as reference:
                    reference_logits = response_logits(reference, on_device)[0]
                values = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].double().cpu()
                s[batch.index] = torch.zeros(len(batch.index), dtype=torch.float64).index_add(
                    0, example.cpu(), values
                )
                divergence += float(kl_per_token(logits, reference_logits).sum())
                tokens += len(targets)
                if progress:
                    progress(len(batch.index))
        refuse_non_finite(s, texts, "log-prob")
        if not np.isfinite(divergence):
            raise GuardStop("KL from the original model is not finite; try --dtype float32")
        return s, divergence / tokens

    def reference_model(self) -> AbstractContextManager[Any]:
        """The original model within a block: adapters off, or the frozen copy of full fine-tuning."""
        if self.frozen is not None:
            return nullcontext(self.frozen)
        return self.policy.reference()


def prepare(
    policy: Policy,
    *,
    negatives: Dataset,
    preferences: Dataset,
    retain: Dataset | None = None,
    retain_loss: str = "none",
    retain_weight: float = 1.0,
    loss: str | UnlearningLoss = "npo",
    loss_options: dict[str, Any] | None = None,
    objective: str = "preference",
    objective_options: dict[str, Any] | None = None,
    template: str = "auto",
    max_length: int = 512,
    max_tokens: int = 2048,
    keep_frozen_copy: bool = False,
    task: Task = silent,
) -> Problem:
    """Tokenises everything and measures the reference log-probs, at φ₀.

    Args:
        policy: from `u2a.models.load_policy`.
        negatives, preferences, retain: canonical rows from `u2a.data.load`. With the objective `nll`,
            `preferences` has the columns of retain rows. Without `retain`, U is taken on the preferred
            validation answers and overlaps with J.
        retain_loss: the retain term, `none`, `nll`, `kl` or `l2`. For `nll` and `kl` every other retain row
            is kept for that term and the rest for U. retain_weight: its λ, for curvatures.
        loss: name in `LOSSES` or a loss object. objective: name in `OBJECTIVES`.
        max_length: tokens of prompt and response. max_tokens: padded tokens of one forward pass.
        keep_frozen_copy: full fine-tuning only: keep a second copy of the model, so that KL can be measured.
    """
    renderer = Renderer(policy.tokenizer, template=template, max_length=max_length)
    negative_texts = tokenize_rows(negatives, renderer)
    pad = policy.tokenizer.pad_token_id
    pad_token_id = pad if pad is not None else 0

    def measured(texts: Dataset, name: str) -> Tensor:
        with task(name, len(texts)) as progress:
            return dataset_logprobs(
                policy.model, texts, max_tokens=max_tokens, pad_token_id=pad_token_id, progress=progress
            )

    with policy.reference() if policy.has_adapter else nullcontext():
        reference = measured(negative_texts, "log-probs of the negatives")
        goal, preferred = _objective(
            objective,
            objective_options or {},
            preferences,
            renderer,
            lambda t: measured(t, "log-probs of the pairs"),
        )
    utility_texts, retain_texts = preferred, None
    if retain is not None:
        utility_texts = tokenize_rows(retain, renderer)
    if retain_loss in ("nll", "kl"):
        if retain is None or len(retain) < 2:
            raise UserError(f"--retain-loss {retain_loss} needs --retain with at least 2 rows")
        every_other = range(0, len(retain), 2), range(1, len(retain), 2)
        utility_texts, retain_texts = (utility_texts.select(part) for part in every_other)
    built = LOSSES[loss](**(loss_options or {})) if isinstance(loss, str) else loss
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
        frozen=_frozen_copy(policy) if keep_frozen_copy and not policy.has_adapter else None,
        retain_weight=retain_weight,
    )


def _objective(
    name: str,
    options: dict[str, Any],
    rows: Dataset,
    renderer: Renderer,
    measured: Callable[[Dataset], Tensor],
) -> tuple[Objective, Dataset]:
    """The objective, and the tokenised preferred texts it holds."""
    if name == "nll":
        texts = tokenize_rows(rows, renderer)
        return MeanLogProb(texts), texts
    if name != "preference":
        raise UserError(f"--objective {name}: take one of {', '.join(OBJECTIVES)}")
    texts, chosen = pair_texts(rows, renderer)
    return OBJECTIVES[name](texts, measured(texts), **options), chosen


def pair_texts(pairs: Dataset, renderer: Renderer) -> tuple[Dataset, Dataset]:
    """P pairs as 2P tokenised texts, the chosen ones first, and the chosen ones alone."""
    from datasets import concatenate_datasets

    chosen = tokenize_rows(pairs, renderer, response="chosen")
    rejected = tokenize_rows(pairs, renderer, response="rejected")
    return concatenate_datasets([chosen, rejected]), chosen


def _frozen_copy(policy: Policy) -> nn.Module:
    frozen = copy.deepcopy(policy.model).eval()
    return frozen.requires_grad_(False)
