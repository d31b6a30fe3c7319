"""Held-out preference metrics: does the model prefer what people preferred, original and aligned alike?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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


def pair_metrics(s: Tensor, lengths: Tensor) -> PairMetrics:
    """Metrics from log-probs s (2P,) and lengths |y| (2P,) of P pairs, the chosen texts first."""
    margin, per_token = pair_margins(s, lengths)
    return PairMetrics(
        margin=float(margin.mean()),
        margin_per_token=float(per_token.mean()),
        accuracy=float((margin > 0).double().mean()),
        accuracy_per_token=float((per_token > 0).double().mean()),
        chosen_logprob=float(s.double().chunk(2)[0].mean()),
    )
