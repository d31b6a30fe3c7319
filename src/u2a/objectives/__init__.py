"""Objectives J(φ): what alignment means for this user, higher = better. Also the utility U.

An objective is a function of the log-probs s (N,) of a fixed set of texts. That is all the gradient
needs: ∇J = Σ_i (dJ/ds_i)·∇s_i, so texts may be batched in any order, whatever pairs they form.
Its classes' dataclass fields with help are the options. To add one: one file, one line in `OBJECTIVES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from u2a.objectives.nll import MeanLogProb
from u2a.objectives.preference import Preference

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor


class Objective(Protocol):
    """J as a function of log-probs."""

    texts: Dataset
    """Tokenised texts, N rows, as `tokenize_rows` makes them."""

    def terms(self, s: Tensor) -> Tensor:
        """One term for each validation example, (N,) -> (P,); their mean is J."""
        ...


OBJECTIVES: dict[str, type] = {"preference": Preference, "nll": MeanLogProb}
"""Name -> objective class."""
