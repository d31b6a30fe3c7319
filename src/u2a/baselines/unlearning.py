"""Methods that unlearn negatives: they differ in the weights alone, and `u2a` is one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from u2a.alignment.inner_run import unlearning_trainer
from u2a.baselines.method_options import Checked
from u2a.baselines.stage import Stage
from u2a.config import UnlearnOptions, option
from u2a.types import UserError
from u2a.weighting import (
    Weighting,
    exchange,
    impact_scale,
    mirror_ascent,
    parse_selection,
    select_greedily,
    warn_of_idle_rho,
)

SELECT = "How many negatives: a percentage, or a number."
ETA = "Step of the mirror ascent on weights."
JOINT = "Weight μ of climbing J; 0 = not at all, as in the paper."
NOTHING = "no negative has a positive impact, so there is nothing that this method would unlearn"


def unlearn(stage: Stage, weights: np.ndarray, *, joint: float = 0.0) -> None:
    """Optimiser steps of the trainer of `u2a align` with these weights (N,), from the current φ, until the
    watch says stop; `joint` is μ."""
    budget = stage.budget
    options = UnlearnOptions(batch_size=budget.batch_size, max_steps=budget.most_steps, joint=joint)
    unlearning_trainer(
        stage.problem,
        weights,
        options,
        learning_rate=stage.rate,
        seed=stage.seed,
        folder=stage.folder,
        callbacks=[stage.watch],
    ).train()


@dataclass(frozen=True)
class Uniform(Checked):
    """All negatives, weight 1 each: blind unlearning; with `joint` > 0 it also climbs J on a share of the
    validation pairs, and J is measured on the others."""

    needs: ClassVar[tuple[str, ...]] = ()
    joint: float = option(0.0, JOINT, least=0)

    def train(self, stage: Stage) -> None:
        """Unlearns in place."""
        unlearn(stage, (stage.problem.prior > 0).astype(float), joint=self.joint)


@dataclass(frozen=True)
class RandomK(Checked):
    """As many negatives as `u2a` may select, drawn by the seed, weight 1 each."""

    needs: ClassVar[tuple[str, ...]] = ()
    select: str = option("50%", SELECT)

    def train(self, stage: Stage) -> None:
        """Unlearns in place."""
        scores = np.random.default_rng(stage.seed).random(len(stage.problem.prior))
        unlearn(stage, _top(stage, scores, self.select))


@dataclass(frozen=True)
class Selected(Checked):
    """Selection without weights: those of the largest positive impact, weight 1 each."""

    needs: ClassVar[tuple[str, ...]] = ()
    select: str = option("50%", SELECT)

    def train(self, stage: Stage) -> None:
        """Unlearns in place."""
        impact = stage.scores().impact
        count = parse_selection(self.select, len(impact))
        chosen = select_greedily(impact, count, stage.problem.prior) > 0
        unlearn(stage, _some(chosen.astype(float)))


@dataclass(frozen=True)
class Cosine(Checked):
    """LESS-like selection (Xia et al. 2024, arXiv 2402.04333, without its Adam statistics and projections):
    those whose negative gradient has the largest cosine with ∇J, weight 1 each."""

    needs: ClassVar[tuple[str, ...]] = ()
    scoring: ClassVar[str] = "exact"  # no other route has the cosine
    select: str = option("50%", SELECT)

    def train(self, stage: Stage) -> None:
        """Unlearns in place."""
        cosine = stage.scores().cosine
        if cosine is None:
            raise UserError("the cosine needs the exact route: --scoring exact")
        unlearn(stage, _top(stage, cosine, self.select))


@dataclass(frozen=True)
class Static:
    """One-shot gradient weights: every negative by its positive impact at the original model, in proportion,
    never changed after. So TRACE weights (Sen Sharma et al., arXiv 2511.02623), by the damped inner product
    with ∇J cut off at 0; without its triage by a judge, its inverted pairs and its KL term."""

    needs: ClassVar[tuple[str, ...]] = ()

    def train(self, stage: Stage) -> None:
        """Unlearns in place."""
        weights = np.where(stage.problem.prior > 0, np.clip(stage.scores().impact, 0, None), 0.0)
        unlearn(stage, _some(weights))


@dataclass(frozen=True)
class U2A(Checked):
    """Selects the negatives of the largest positive impact and weights them by mirror ascent on J (Feng et
    al., arXiv 2504.06659); with `joint` > 0 it also climbs J on a share of the validation pairs, and impact,
    stopping and J use the others."""

    needs: ClassVar[tuple[str, ...]] = ()
    select: str = option("50%", SELECT)
    eta: float = option(0.5, ETA, least=0)
    rho: float = option(0.0, "Sparsity ρ; 0 = none.", least=0)
    outer_steps: int = option(1, "Rounds of scoring and unlearning that the budget is cut into.", least=1)
    joint: float = option(0.0, JOINT, least=0)

    def train(self, stage: Stage) -> None:
        """Unlearns in place."""
        options = Weighting(self.select, self.eta, self.rho)
        problem, impact = stage.problem, stage.scores().impact
        weights, scale = selected(stage, self.select)
        warn_of_idle_rho(weights, options, self.outer_steps)
        for k in range(self.outer_steps):
            if k > 0:
                if stage.watch.share >= 1:  # fewer steps than rounds
                    break
                at = problem.measure(stage.task, negatives=True)
                impact = stage.score(at).impact
            weights = exchange(mirror_ascent(weights, impact, scale, options), impact, problem.prior, options)
            stage.watch.until = (k + 1) / self.outer_steps
            unlearn(replace(stage, seed=stage.seed + 1000 * k), weights, joint=self.joint)


@dataclass(frozen=True)
class WeightsAlone(Checked):
    """Weights without selection: mirror ascent from weight 1 on every negative, helpful or not."""

    needs: ClassVar[tuple[str, ...]] = ()
    eta: float = option(0.5, ETA, least=0)

    def train(self, stage: Stage) -> None:
        """Unlearns in place."""
        options = Weighting("100%", self.eta, floor=0.0)
        weights = (stage.problem.prior > 0).astype(float)
        impact = stage.scores().impact
        unlearn(stage, mirror_ascent(weights, impact, impact_scale(impact, weights), options))


def selected(stage: Stage, select: str) -> tuple[np.ndarray, float]:
    """u2a's selection at the original model, (N,), and the scale of its impacts.

    Raises:
        UserError: no impact is positive.
    """
    impact = stage.scores().impact
    weights = _some(select_greedily(impact, parse_selection(select, len(impact)), stage.problem.prior))
    return weights, impact_scale(impact, weights)


def first_weights(stage: Stage, select: str, eta: float) -> np.ndarray:
    """u2a's weights (N,) after one round of mirror ascent at the original model."""
    options, (weights, scale) = Weighting(select, eta), selected(stage, select)
    impact, prior = stage.scores().impact, stage.problem.prior
    return exchange(mirror_ascent(weights, impact, scale, options), impact, prior, options)


def _top(stage: Stage, scores: np.ndarray, select: str) -> np.ndarray:
    """Weight 1 for those of the largest scores, 0 for the others; a prior weight of 0 leaves one out."""
    usable = np.flatnonzero(stage.problem.prior > 0)
    count = parse_selection(select, len(scores))
    weights = np.zeros(len(scores))
    weights[usable[np.argsort(-scores[usable], kind="stable")[:count]]] = 1.0
    return weights


def _some(weights: np.ndarray) -> np.ndarray:
    if not weights.any():
        raise UserError(NOTHING)
    return weights
