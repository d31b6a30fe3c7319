"""Objectives J(φ): what alignment means for this user, higher = better. Also the utility U.

An objective is a function of the log-probs s (N,) of a fixed set of texts. That is all the gradient
needs: ∇J = Σ_i (dJ/ds_i)·∇s_i, so texts may be batched in any order, whatever pairs they form. `Reward` has
no texts of its own and draws such an objective wherever J is measured.
Its classes' dataclass fields with help are the options. To add one: one file, one line in `OBJECTIVES`; one
of the user's own is made with `texts` and `reference`, as `Preference` is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from u2a.objectives.drawn_reward import DrawnReward as DrawnReward
from u2a.objectives.nll import MeanLogProb
from u2a.objectives.preference import Preference
from u2a.objectives.reward import Reward
from u2a.plugins import find, installed
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor


class Objective(Protocol):
    """J as a function of log-probs."""

    @property
    def texts(self) -> Dataset:
        """Tokenised texts, N rows, as `tokenize_rows` makes them."""
        ...

    def terms(self, s: Tensor) -> Tensor:
        """One term for each validation example, (N,) -> (P,); their mean is J."""
        ...


def masses_of(objective: Objective, terms: int) -> NDArray[np.float64]:
    """How much each of the P `terms` counts, (P,): the objective's `masses` where J is a ratio, as it is per
    token; else all the same."""
    return np.asarray(getattr(objective, "masses", np.ones(terms)), np.float64)


def influences(objective: Objective, terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values (P,) with the mean of `terms`, J, and the spread that other validation examples would make.

    Of a mean these are the terms. Of a ratio Σs/Σm they are J + (s_i − J·m_i)·P/Σm (the delta method): that a
    text is long is then no noise. Differences of J at two φ have the differences of these.
    """
    masses = masses_of(objective, len(terms))
    return terms - terms.mean() * (masses / masses.mean() - 1)


OBJECTIVES: dict[str, type] = {"preference": Preference, "nll": MeanLogProb, "reward": Reward}
"""Name -> objective class."""


def objective_class(name: str) -> type:
    """The class of that name: u2a's own, one that an installed package brings, or one that was loaded.

    Raises:
        UserError: no such objective, or one that cannot be loaded.
    """
    if ":" not in name:  # a path is code: the command line loads it before, and Python has the class itself
        find("u2a.objectives", name, OBJECTIVES, flag="--objective")
    if name not in OBJECTIVES:
        offered = dict.fromkeys([*OBJECTIVES, *installed("u2a.objectives")])
        raise UserError(f"--objective {name}: take one of {', '.join(offered)}")
    return OBJECTIVES[name]
