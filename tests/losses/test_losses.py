"""Every loss against numbers derived by hand, and its closed-form derivative against autograd."""

import math

import pytest
import torch

from u2a.losses import LOSSES, NPO, GradientAscent, SimNPO
from u2a.types import UserError

S = torch.tensor([-6.0, -20.0], dtype=torch.float64)
REF = torch.tensor([-6.0, -10.0], dtype=torch.float64)
LENGTH = torch.tensor([3.0, 5.0], dtype=torch.float64)
ALL = [
    GradientAscent(),
    NPO(),
    NPO(length_normalise=True),
    NPO(beta=2.0),
    SimNPO(),
    SimNPO(beta=2.5, gamma=0.5),
]


def test_ga_is_the_mean_logprob_per_token():
    """-6 / 3 = -2 and -20 / 5 = -4."""
    assert GradientAscent()(S, REF, LENGTH).tolist() == [-2.0, -4.0]


def test_npo_by_hand():
    """beta 0.1. At the reference: -(2/0.1) log sigma(0) = 20 log 2 = 13.862944.
    Ten nats below: -20 log sigma(1) = 20 log(1 + e^-1) = 20 * 0.3132616875 = 6.26523375."""
    values = NPO(beta=0.1)(S, REF, LENGTH)
    assert values.tolist() == pytest.approx([13.862943611, 6.265233750], abs=1e-8)


def test_npo_length_normalised_by_hand():
    """Ten nats over 5 tokens is 2 a token: 20 log(1 + e^-0.2) = 20 * 0.5981388694 = 11.962777388."""
    assert NPO(0.1, True)(S, REF, LENGTH)[1].item() == pytest.approx(11.962777388, abs=1e-7)


def test_simnpo_by_hand():
    """beta 2.5, gamma 0.5; s/|y| = -2 and -4: arguments 2.5*(-2)+0.5 = -4.5 and -9.5;
    0.8 * log(1 + e^-4.5) = 0.8 * 0.0110477449 = 0.0088381960; 0.8 * log(1 + e^-9.5) = 0.8 * 7.4849e-5."""
    values = SimNPO(2.5, 0.5)(S, REF, LENGTH)
    assert values[0].item() == pytest.approx(0.0088381960, abs=1e-8)
    assert values[1].item() == pytest.approx(0.8 * math.log1p(math.exp(-9.5)), rel=1e-12)


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_derivative_is_that_of_autograd(loss):
    s = S.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(loss(s, REF, LENGTH).sum(), s)
    torch.testing.assert_close(loss.derivative(S, REF, LENGTH), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_one_value_per_example_and_lower_is_more_forgotten(loss):
    values = loss(S, REF, LENGTH)
    assert values.shape == S.shape
    assert (loss(S - 1.0, REF, LENGTH) < values).all()


def test_npo_at_the_reference_has_length_times_gas_gradient():
    npo = NPO(0.1).derivative(REF, REF, LENGTH)
    torch.testing.assert_close(npo, LENGTH * GradientAscent().derivative(REF, REF, LENGTH))


def test_npo_length_normalised_at_the_reference_has_gas_gradient():
    npo = NPO(0.1, True).derivative(REF, REF, LENGTH)
    torch.testing.assert_close(npo, GradientAscent().derivative(REF, REF, LENGTH))


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_simnpo_tends_to_gas_gradient_times_two_sigma_gamma(gamma):
    expected = 2 / (1 + math.exp(-gamma)) * GradientAscent().derivative(S, REF, LENGTH)
    torch.testing.assert_close(SimNPO(1e-9, gamma).derivative(S, REF, LENGTH), expected, rtol=1e-7, atol=0)


def test_npo_stays_finite_far_from_the_reference():
    """log(1 + e^x) = x for large x: 20 * 0.1 * 1e4 = 2e4; and 0 for very negative x."""
    far = torch.tensor([1e4, -1e4])
    values = NPO(0.1)(far, torch.zeros(2), torch.ones(2))
    assert values.tolist() == pytest.approx([2e4, 0.0])


@pytest.mark.parametrize("cls", [NPO, SimNPO])
@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_beta_must_be_positive(cls, beta):
    with pytest.raises(UserError, match=r"beta=.*must be (above 0|finite)"):
        cls(beta=beta)


def test_every_loss_is_tested():
    assert {type(loss) for loss in ALL} == set(LOSSES.values())
