"""J and U against numbers derived by hand."""

import math

import pytest
import torch
from datasets import Dataset

from u2a.objectives import MeanLogProb, Preference, influences
from u2a.types import UserError

PAIRS = Dataset.from_dict({"n_tokens": [2, 3, 4, 1]})


def test_preference_is_minus_log_two_at_the_reference():
    s = torch.tensor([-3.0, -4.0, -5.0, -6.0])
    terms = Preference(PAIRS, s.clone(), beta=0.1).terms(s)
    assert terms.tolist() == pytest.approx([-math.log(2)] * 2)


def test_preference_by_hand():
    """beta 0.5. Pair 1: chosen +2, rejected -2 against the reference: log sigma(2) = -0.126928.
    Pair 2: chosen -1, rejected +1: log sigma(-1) = -1.313262."""
    reference = torch.zeros(4, dtype=torch.float64)
    s = torch.tensor([2.0, -1.0, -2.0, 1.0], dtype=torch.float64)
    terms = Preference(PAIRS, reference, beta=0.5).terms(s)
    assert terms.tolist() == pytest.approx([-0.126928011, -1.313261688], abs=1e-8)


def test_preference_grows_with_chosen_and_falls_with_rejected():
    s = torch.zeros(4, requires_grad=True)
    Preference(PAIRS, torch.zeros(4)).terms(s).mean().backward()
    assert (s.grad[:2] > 0).all()
    assert (s.grad[2:] < 0).all()
    assert s.grad[0].item() == pytest.approx(0.5 * 0.1 / 2)


def test_preference_needs_pairs_and_a_positive_beta():
    with pytest.raises(ValueError, match="as many rejected"):
        Preference(Dataset.from_dict({"n_tokens": [1, 2, 3]}), torch.zeros(3))
    with pytest.raises(UserError, match="must be above 0"):
        Preference(PAIRS, torch.zeros(4), beta=0.0)


def test_mean_logprob_is_per_token_over_all_tokens_by_hand():
    """(-2 - 3 - 4 - 11) / (2 + 3 + 4 + 1) = -2, not the mean of the four ratios."""
    terms = MeanLogProb(PAIRS).terms(torch.tensor([-2.0, -3.0, -4.0, -11.0]))
    assert terms.mean().item() == pytest.approx(-2.0)


def test_what_other_texts_would_change_of_a_ratio_by_hand():
    """J = −20/10 = −2; text i moves it by (s_i − J·|y_i|)·N/T, N/T = 0.4: (−2+4, −3+6, −4+8, −11+2)·0.4.
    Where every token has the same log-prob, lengths are no noise."""
    objective, s = MeanLogProb(PAIRS), torch.tensor([-2.0, -3.0, -4.0, -11.0])
    found = influences(objective, objective.terms(s).double().numpy())
    assert found == pytest.approx([-2 + 0.8, -2 + 1.2, -2 + 1.6, -2 - 3.6])
    same = influences(objective, objective.terms(-0.5 * torch.tensor([2.0, 3.0, 4.0, 1.0])).double().numpy())
    assert same == pytest.approx([-0.5] * 4)


def test_what_other_pairs_would_change_of_a_mean_are_its_terms():
    objective = Preference(PAIRS, torch.zeros(4))
    terms = objective.terms(torch.tensor([2.0, -1.0, -2.0, 1.0])).double().numpy()
    assert influences(objective, terms) == pytest.approx(terms)
