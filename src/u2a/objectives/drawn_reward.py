"""J from responses that were drawn and scored: leave-one-out REINFORCE, the KL term in the reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor


@dataclass(frozen=True)
class DrawnReward:
    """J at and around the φ₀ that K responses to each of P prompts were drawn at.

    With r the rewards, q = π_φ₀ what was drawn from, w = π_φ/q, R = r − β·log(π_φ/π_ref), and b_k the mean
    of R at φ₀ over the prompt's other responses, a prompt's term is

        (1/K)·Σ_k [w_k·(R_k − b_k) + β·(w_k − 1) + b_k].

    Its expectation over draws is E_{y∼π_φ}[r] − β·KL(π_φ ‖ π_ref) at every φ: E[w] = 1, and b_k does not
    depend on y_k. At φ₀ the value is the mean of R, and dJ/ds_k is (R_k − b_k)/K: leave-one-out REINFORCE
    (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740, eq. 6), the KL term in the reward. Away from φ₀
    the variance of w grows like exp of the response's KL: draw again rather than go far.

    Args:
        texts: N = P·K tokenised responses, the K of the first prompt first; the token that ended an answer is
            part of it.
        s: (N,) their log-probs at φ₀. reference: (N,) under the original model, in nats.
        rewards: (N,), in the scorer's unit.
        samples: K, at least 2. beta: reward per nat.
    """

    texts: Dataset
    s: Tensor
    reference: Tensor
    rewards: Tensor
    samples: int
    beta: float

    def terms(self, s: Tensor) -> Tensor:
        """Each prompt's share of J: (N,) -> (P,), in the scorer's unit."""
        drawn, reference, rewards = (each.to(s) for each in (self.s, self.reference, self.rewards))
        weight = (s - drawn).exp()
        baseline = _mean_of_the_others(rewards - self.beta * (drawn - reference), self.samples)
        advantage = rewards - self.beta * (s - reference) - baseline
        each = weight * advantage + self.beta * (weight - 1) + baseline
        return each.view(-1, self.samples).mean(1)

    @property
    def standard_error(self) -> float:
        """Of J at φ₀ from sampling alone, the prompts taken as given: √(Σ_p var_p/K)/P."""
        values = (self.rewards - self.beta * (self.s - self.reference)).double().view(-1, self.samples)
        return float((values.var(1) / self.samples).sum().sqrt() / len(values))


def _mean_of_the_others(values: Tensor, samples: int) -> Tensor:
    """Of each group of K, the mean without the value itself: (N,) -> (N,)."""
    groups = values.view(-1, samples)
    return ((groups.sum(1, keepdim=True) - groups) / (samples - 1)).reshape(-1)
