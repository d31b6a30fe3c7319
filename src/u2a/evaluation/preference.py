"""Held-out preference metrics: does the model prefer what people preferred, original and aligned alike?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from u2a.config import option
from u2a.evaluation.figure import Figure

if TYPE_CHECKING:
    from torch import Tensor

    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Subject


@dataclass(frozen=True)
class PairMetrics:
    """Policy preference metrics on P pairs, defined for every model, the original one included.

    `margin` is the mean of log π(chosen) − log π(rejected) in nats, log-probs summed over tokens;
    `margin_per_token` the same with log-probs per token; `accuracy` and `accuracy_per_token` the share of
    pairs whose margin is above 0. Higher is better. `chosen_logprob` is the mean summed log-prob of the
    chosen answers in nats: its change says how much unlearning cost them.
    """

    margin: float
    margin_per_token: float
    accuracy: float
    accuracy_per_token: float
    chosen_logprob: float


def pair_margins(s: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Margins of P pairs, summed and per token: from s (2P,) and |y| (2P,), chosen first -> (P,), (P,)."""
    s = s.double()
    chosen, rejected = s.chunk(2)
    chosen_rate, rejected_rate = (s / lengths.double()).chunk(2)
    return chosen - rejected, chosen_rate - rejected_rate


def pair_values(s: Tensor, lengths: Tensor) -> dict[str, NDArray[np.float64]]:
    """What each of P pairs contributes to a field of `PairMetrics`, by its name: (P,) each, whose mean it is.

    Args:
        s, lengths: (2P,) log-probs and |y|, the chosen texts first.
    """
    margin, per_token = (values.numpy() for values in pair_margins(s, lengths))
    return {
        "margin": margin,
        "margin_per_token": per_token,
        "accuracy": (margin > 0).astype(np.float64),
        "accuracy_per_token": (per_token > 0).astype(np.float64),
        "chosen_logprob": s.double().chunk(2)[0].numpy(),
    }


def pair_metrics(s: Tensor, lengths: Tensor) -> PairMetrics:
    """Metrics from log-probs s (2P,) and lengths |y| (2P,) of P pairs, the chosen texts first."""
    return PairMetrics(**{name: float(values.mean()) for name, values in pair_values(s, lengths).items()})


@dataclass(frozen=True)
class PreferenceMetric:
    """On held-out pairs: `accuracy`, share whose chosen answer is likelier than the rejected one, ↑;
    `margin`, mean of log π(chosen) − log π(rejected) in nats, ↑; `accuracy_per_token` and `margin_per_token`,
    the same of log-probs per token, so that length does not decide, ↑; `implicit_reward_margin`, β times the
    change of the margin against the original model, the reward that DPO reads out of a policy (Rafailov et
    al. 2023, arXiv 2305.18290), ↑; `chosen_logprob`, ↑, and `rejected_logprob`, summed, in nats: which of the
    two the margin came from."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("test",),)

    reward_beta: float = option(0.1, "implicit_reward_margin: β.", above=0)

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """A value a pair."""
        import torch

        texts = material.test
        if texts is None:
            return []
        lengths = torch.tensor(texts["n_tokens"])
        s = torch.as_tensor(subject.logprobs("test", texts))
        margin, per_token = (values.numpy() for values in pair_margins(s, lengths))
        before = margin
        if subject.original is not None:
            at_first = torch.as_tensor(subject.original.logprobs("test", texts))
            before = pair_margins(at_first, lengths)[0].numpy()
        chosen, rejected = (values.numpy() for values in s.chunk(2))
        each = (
            ("accuracy", margin > 0, "higher", "share"),
            ("accuracy_per_token", per_token > 0, "higher", "share"),
            ("margin", margin, "higher", "nats"),
            ("margin_per_token", per_token, "higher", "nats per token"),
            ("implicit_reward_margin", self.reward_beta * (margin - before), "higher", "nats"),
            ("chosen_logprob", chosen, "higher", "nats"),
            ("rejected_logprob", rejected, "neither", "nats"),
        )
        return [Figure(name, np.asarray(v, np.float64), better, unit) for name, v, better, unit in each]
