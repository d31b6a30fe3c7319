"""One step of AdamW, and the adjoint of that step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AdamWStep:
    """A step of `torch.optim.AdamW` as one parameter sees it (Loshchilov & Hutter, arXiv 1711.05101):

        m' = β₁·m + (1−β₁)·g        v' = β₂·v + (1−β₂)·g²
        φ' = (1−η·w)·φ − η/(1−β₁ᵏ)·m'·P        P = 1/(√(v'/(1−β₂ᵏ)) + ε)

    `number` k counts from 1; `learning_rate` η, `weight_decay` w.

    The root has no derivative at v' = 0, and an element that never had a gradient does not move: where
    v' = 0, P is 0 here, so that such an element contributes nothing to any score.
    """

    number: int
    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float

    def first_moment(self, m: Tensor, g: Tensor) -> Tensor:
        """m', of any shape."""
        return self.beta1 * m + (1 - self.beta1) * g

    def second_moment(self, v: Tensor, g: Tensor) -> Tensor:
        """v', of any shape."""
        return self.beta2 * v + (1 - self.beta2) * g.square()

    def preconditioner(self, v_after: Tensor) -> Tensor:
        """P for v', 0 where v' is."""
        root = (v_after / (1 - self.beta2**self.number)).sqrt()
        return (1 / (root + self.epsilon)).masked_fill(v_after == 0, 0.0)

    def adjoint(
        self,
        m: Tensor,
        v: Tensor,
        g: Tensor,
        after: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Pulls dF/d(φ', m', v') back to dF/dg and dF/d(φ, m, v), g held fixed in the latter.

        With λ the derivatives `after`: λ_m += −η/(1−β₁ᵏ)·P·λ_φ, λ_v += η/(1−β₁ᵏ)·m'·P²/(2√(v'·(1−β₂ᵏ)))·λ_φ,
        then dF/dg = (1−β₁)·λ_m + 2(1−β₂)·g·λ_v. The caller adds what φ does to g: the Hessian times dF/dg.

        Args:
            m, v, g: the moments before the step and its gradient, of the parameter's shape, as are the rest.
        """
        of_phi, of_m, of_v = after
        m_after, v_after = self.first_moment(m, g), self.second_moment(v, g)
        p = self.preconditioner(v_after)
        rate = self.learning_rate / (1 - self.beta1**self.number)
        slope = p / (2 * (v_after * (1 - self.beta2**self.number)).sqrt())  # −P'(v')/P
        slope = slope.masked_fill(v_after == 0, 0.0)
        of_m = of_m - rate * p * of_phi
        of_v = of_v + rate * m_after * p * slope * of_phi
        of_g = (1 - self.beta1) * of_m + 2 * (1 - self.beta2) * g * of_v
        decayed = (1 - self.learning_rate * self.weight_decay) * of_phi
        return of_g, (decayed, self.beta1 * of_m, self.beta2 * of_v)
