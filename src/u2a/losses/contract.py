"""What every unlearning loss must be: checked for those of the user's own, since a wrong sign is silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.losses import UnlearningLoss


def check_loss(loss: UnlearningLoss) -> None:
    """Compares a loss with its contract on seven made-up responses, in float64.

    One value per example, which depends on that example alone; finite; `derivative` is dℓ/ds, as autograd
    finds it, and never negative, so that a lower loss means more forgotten; s_ref matters only if
    `needs_reference`.

    Raises:
        UserError: it breaks one of these; says which.
    """
    name = type(loss).__name__
    length = torch.arange(1, 8)
    s = torch.linspace(-60.0, -0.5, 7, dtype=torch.float64).requires_grad_(True)
    reference = torch.linspace(-45.0, -2.0, 7, dtype=torch.float64).flip(0)
    value = loss(s, reference, length)
    slope = loss.derivative(s.detach(), reference, length)
    if value.shape != s.shape or slope.shape != s.shape:
        shapes = f"{tuple(value.shape)} and {tuple(slope.shape)}"
        raise UserError(
            f"the loss {name} must give one value and one derivative per example, (7,) for 7; got {shapes}"
        )
    (gradient,) = torch.autograd.grad(value.sum(), s, allow_unused=True, materialize_grads=True)
    if not (torch.isfinite(value).all() and torch.isfinite(slope).all()):
        raise UserError(f"the loss {name} is not finite for log-probs from −60 to −0.5 nats")
    alone = torch.cat(
        [loss(s[i : i + 1].detach(), reference[i : i + 1], length[i : i + 1]) for i in range(7)]
    )
    if not torch.allclose(alone, value.detach(), rtol=1e-6):
        raise UserError(f"the loss {name} of an example must not depend on the others of its batch")
    if not torch.allclose(slope.to(gradient), gradient, rtol=1e-5, atol=1e-9):
        raise UserError(
            f"derivative of the loss {name} is not dℓ/ds: {slope.tolist()} where autograd finds "
            f"{gradient.tolist()}"
        )
    if (slope < 0).any():
        raise UserError(
            f"the loss {name} falls where a response gets likelier: its sign is the wrong way round"
        )
    if not loss.needs_reference and not torch.equal(loss(s, reference + 1.0, length), value):
        raise UserError(f"the loss {name} depends on s_ref: set needs_reference to True")
