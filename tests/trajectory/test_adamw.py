"""The AdamW step and its adjoint, against torch's own optimiser."""

import pytest
import torch

from u2a.trajectory.adamw import AdamWStep

STEP = AdamWStep(number=3, learning_rate=0.01, beta1=0.9, beta2=0.99, epsilon=1e-8, weight_decay=0.3)


def torch_step(phi, m, v, g, step=STEP):
    """φ', m', v' by `torch.optim.AdamW`."""
    p = torch.nn.Parameter(phi.clone())
    optimizer = torch.optim.AdamW(
        [p], step.learning_rate, (step.beta1, step.beta2), step.epsilon, step.weight_decay
    )
    optimizer.state[p] = {
        "step": torch.tensor(step.number - 1.0),
        "exp_avg": m.clone(),
        "exp_avg_sq": v.clone(),
    }
    p.grad = g.clone()
    optimizer.step()
    return p.detach(), optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]


@pytest.fixture
def point():
    """φ, m, v, g and a covector on φ', m', v', six elements each."""
    draw = torch.Generator().manual_seed(0)
    phi, m, g, a, b, c = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    return [phi, m, torch.rand(6, generator=draw, dtype=torch.float64), g], (a, b, c)


def test_moments_and_update_are_torchs(point):
    (phi, m, v, g), _ = point
    after, m_after, v_after = torch_step(phi, m, v, g)
    torch.testing.assert_close(STEP.first_moment(m, g), m_after)
    torch.testing.assert_close(STEP.second_moment(v, g), v_after)
    rate = STEP.learning_rate / (1 - STEP.beta1**STEP.number)
    moved = (1 - 0.01 * 0.3) * phi - rate * m_after * STEP.preconditioner(v_after)
    torch.testing.assert_close(after, moved, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("number", [1, 3, 50])
@pytest.mark.parametrize("epsilon", [1e-8, 0.5])
def test_adjoint_is_that_of_torchs_step(point, number, epsilon):
    """⟨covector, after⟩ differentiated by central differences of the optimiser itself, element by element."""
    step = AdamWStep(number, 0.01, 0.9, 0.99, epsilon, 0.3)
    values, covector = point
    of_g, (of_phi, of_m, of_v) = step.adjoint(*values[1:], covector)
    h = 1e-6
    for which, found in enumerate((of_phi, of_m, of_v, of_g)):
        sides = []
        for sign in (1, -1):
            moved = [x + sign * h if i == which else x for i, x in enumerate(values)]
            sides.append(sum(c * out for c, out in zip(covector, torch_step(*moved, step), strict=True)))
        torch.testing.assert_close(found, (sides[0] - sides[1]) / (2 * h), rtol=1e-6, atol=1e-8)


def test_an_element_without_gradient_contributes_nothing():
    """v' = 0: no move of φ, so only m and v themselves carry on; nothing is infinite or NaN."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert STEP.preconditioner(zero).item() == 0.0
    of_g, (of_phi, of_m, of_v) = STEP.adjoint(zero, zero, zero, (one, zero, zero))
    assert (of_g.item(), of_m.item(), of_v.item()) == (0.0, 0.0, 0.0)
    assert of_phi.item() == pytest.approx(1 - 0.01 * 0.3)
