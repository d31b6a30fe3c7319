"""What users would pick instead, in one harness: same data, same original model, same measuring.

A method is a dataclass whose fields are its options. `train(stage)` moves the stage's policy in place, from
φ₀, within the stage's budget; `needs` names what it cannot do without: `training` pairs, `mixture`, `reward`.
One with `fixed_rate` brings its learning rate along, all others take the comparison's; one with `scoring`
has its impacts computed by that route. To add one: one class, one line in `METHODS` (in `UNLEARNING` too
where it unlearns by a loss), its name in the help of `u2a compare`, and its rows in docs/comparison.md.
"""

from __future__ import annotations

from typing import Protocol

from u2a.baselines.climbing import Climb
from u2a.baselines.imitation import Retrain, Sft, Untouched
from u2a.baselines.preference import D2o, Dpo, Kto
from u2a.baselines.reinforce import Rloo
from u2a.baselines.stage import Budget, Point, Spent, Stage, Watch
from u2a.baselines.unlearning import U2A, Cosine, RandomK, Selected, Static, Uniform, WeightsAlone

__all__ = ["METHODS", "UNLEARNING", "Budget", "Method", "Point", "Spent", "Stage", "Watch"]


class Method(Protocol):
    """What `METHODS` holds."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What the user must bring beside negatives and validation pairs."""
        ...

    def train(self, stage: Stage) -> None:
        """Moves the stage's policy in place."""
        ...


METHODS: dict[str, type] = {
    "original": Untouched,
    "u2a": U2A,
    "uniform": Uniform,
    "random-k": RandomK,
    "selected": Selected,
    "weights": WeightsAlone,
    "cosine": Cosine,
    "static": Static,
    "sft": Sft,
    "retrain": Retrain,
    "dpo": Dpo,
    "kto": Kto,
    "d2o": D2o,
    "rloo": Rloo,
    "climb": Climb,
}
"""Name -> method class."""
UNLEARNING = ("u2a", "uniform", "random-k", "selected", "weights", "cosine", "static")
"""Those that unlearn, by the loss of their entry."""
