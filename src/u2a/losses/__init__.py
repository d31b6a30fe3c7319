"""Unlearning losses, one file each, and the retain terms that hold the model in place.

A loss is a frozen dataclass whose fields are its options. It is called with s (B,), s_ref (B,) and
|y| (B,) and returns one value per example (B,), lower = more forgotten; `derivative` is dℓ/ds (B,) in
closed form. To add one: one file, one line in `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from u2a.losses.ga import GradientAscent
from u2a.losses.npo import NPO
from u2a.losses.simnpo import SimNPO
from u2a.plugins import find, installed
from u2a.types import UserError

if TYPE_CHECKING:
    from torch import Tensor


class UnlearningLoss(Protocol):
    """ℓ(s, s_ref, |y|): a function of the response's log-prob alone; never contains a retain term.

    `needs_reference` says whether s_ref matters.
    """

    needs_reference: ClassVar[bool]

    def __call__(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:
        """Loss of each example: (B,), (B,), (B,) -> (B,)."""
        ...

    def derivative(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:
        """dℓ/ds of each example: (B,), (B,), (B,) -> (B,). Never negative."""
        ...


LOSSES: dict[str, type] = {"ga": GradientAscent, "npo": NPO, "simnpo": SimNPO}
"""Name -> loss class."""

COMPOSED = {"graddiff": ("ga", "nll"), "ga+kl": ("ga", "kl")}
"""Names of the literature that mean an unlearning loss together with a retain term."""

RETAIN_TERMS = ("none", "nll", "kl", "l2")
"""Names of the retain terms R; see `u2a.losses.retain`."""


def loss_class(name: str) -> type:
    """The class of that name: u2a's own, one that an installed package brings, or one that was loaded.

    Raises:
        UserError: no such loss, one that cannot be loaded, or a name that also means a retain term.
    """
    if name in COMPOSED:
        plain, term = COMPOSED[name]
        raise UserError(
            f"--loss {name} is {plain} with a retain term: take --loss {plain} --retain-loss {term}"
        )
    if ":" not in name:  # a path is code: the command line loads it before, and Python has the class itself
        find("u2a.losses", name, LOSSES, COMPOSED, flag="--loss")
    if name not in LOSSES:
        offered = dict.fromkeys([*LOSSES, *COMPOSED, *installed("u2a.losses")])
        raise UserError(f"--loss {name}: not a loss; take one of {', '.join(offered)}")
    return LOSSES[name]


def built_loss(
    loss: str | UnlearningLoss, options: Mapping[str, Any] | None, retain_loss: str | None
) -> tuple[UnlearningLoss, str]:
    """The loss object and the retain term that are meant by a name, which may mean both, or by an object.

    Raises:
        UserError: as `resolve_loss`; or an object, which has its own options, is given some.
    """
    if isinstance(loss, str):
        plain, term = resolve_loss(loss, retain_loss)
        return loss_class(plain)(**(options or {})), term
    if options:
        raise UserError("loss_options are for a loss by name: give them to the loss object itself")
    return loss, retain_term(retain_loss)


def resolve_loss(loss: str, retain_loss: str | None) -> tuple[str, str]:
    """Plain loss and retain term for a name of the literature: `graddiff` -> (`ga`, `nll`).

    Raises:
        UserError: an unknown name, or a retain term that contradicts the composed name.
    """
    if loss not in COMPOSED:
        loss_class(loss)
    plain, implied = COMPOSED.get(loss, (loss, None))
    if implied and retain_loss not in (None, implied):
        raise UserError(f"--loss {loss} means --retain-loss {implied}; for another, use --loss {plain}")
    return plain, retain_term(implied or retain_loss)


def retain_term(name: str | None) -> str:
    """The retain term of that name; none where there is no name.

    Raises:
        UserError: an unknown name.
    """
    term = name or "none"
    if term not in RETAIN_TERMS:
        raise UserError(f"--retain-loss {term}: take one of {', '.join(RETAIN_TERMS)}")
    return term
