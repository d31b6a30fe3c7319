"""Sums of gradients over a data set keep the small ones."""

import torch

from problems import tiny_problem
from u2a.impact.context import ScoringContext, norm
from u2a.impact.gradient import weighted_logprob_gradient
from u2a.passes import dataset as passes


def test_a_sum_of_16_bit_gradients_keeps_the_small_ones(monkeypatch):
    """One text with coefficient 1, then 40 times the same with 1/600: (1 + 40/600) times its gradient. A
    16-bit sum would lose each of the 40, being less than half of its last place."""
    monkeypatch.setattr(passes, "can_pack", lambda *_: False)  # each text in a batch of its own
    problem = tiny_problem(lora_rank=0, dtype=torch.bfloat16, max_tokens=1)
    context, texts = ScoringContext.of(problem), problem.negative_texts
    alone = weighted_logprob_gradient(context, texts.select([0]), torch.ones(1))
    coefficients = torch.tensor([1.0] + 40 * [1 / 600])
    found = weighted_logprob_gradient(context, texts.select([0] * 41), coefficients)
    expected = {name: value.double() * (1 + 40 / 600) for name, value in alone.items()}
    off = norm({name: found[name].double() - value for name, value in expected.items()})
    assert off < 0.01 * norm(expected)
