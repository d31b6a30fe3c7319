"""The finished runs of a ground truth: one JSON file each, written whole, so that nothing is done twice.

A cell also says what it was made with. One that was made with anything else is refused by name.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from u2a.config import UnlearnOptions
from u2a.fingerprint import described, digest_of_texts
from u2a.storage.files import set_aside, write_json
from u2a.types import UserError
from u2a.verification.plan import Plan, Run

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.problem import Problem

log = logging.getLogger("u2a")

SAME_START = 1e-3
"""Largest difference of U at the start, in nats per token, that is still the same model."""

Figures = dict[str, float | None]
"""`objective` J, `utility` U, `kl`, and `held_out`, J on held-out pairs; None = not measured."""


@dataclass(frozen=True)
class Cell:
    """One subset unlearned for real. `members` are positions of negatives; `start` and `end` are measured at
    the original model and after the last optimiser step; `seconds` is what it took (wall clock)."""

    subset: int
    seed: int
    members: list[int]
    start: Figures
    end: Figures
    seconds: float

    def change(self, figure: str) -> float:
        """End minus start, in the figure's own unit; NaN = not measured."""
        start, end = self.start.get(figure), self.end.get(figure)
        return math.nan if start is None or end is None else end - start


@dataclass(frozen=True)
class Cells:
    """The folder of a plan's cells; `settings` are what shapes a cell, by name."""

    folder: Path
    plan: Plan
    settings: Mapping[str, str]

    def path(self, run: Run) -> Path:
        """`subset-0003-seed-1.json`."""
        return self.folder / f"subset-{run.subset:04d}-seed-{run.seed}.json"

    def write(self, cell: Cell) -> None:
        """Writes one cell whole."""
        write_json(self.path(Run(cell.subset, cell.seed)), {**asdict(cell), "settings": dict(self.settings)})

    def read(self, run: Run, utility: float | None = None) -> Cell | None:
        """The finished cell of a run, None if there is none yet, or a damaged one: it is set aside and said,
        so that it is made again.

        Args:
            utility: U at the start of this session: the same data and settings on another model are
                something else too.

        Raises:
            UserError: the file cannot be read, or was made with something else; names it.
        """
        path = self.path(run)
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            settings = {str(key): str(value) for key, value in found.pop("settings").items()}
            cell = Cell(**found)
            before = cell.start["utility"]
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning("%s is damaged (%r): kept as %s, and made again", path, error, set_aside(path).name)
            return None
        names = {*settings, *self.settings}
        changed = sorted(name for name in names if settings.get(name) != self.settings.get(name))
        if cell.members != self.plan.rows(run):
            changed.append("the members of the subset")
        if utility is not None and before is not None and abs(before - utility) > SAME_START:
            changed.append(f"U of the original model ({before:.4f}, now {utility:.4f})")
        if changed:
            raise UserError(
                f"{path} was made with other settings: {', '.join(changed)}; go on with the same, or name a "
                "new --output"
            )
        return cell

    def remaining(self, utility: float | None = None) -> list[Run]:
        """The runs without a cell yet.

        Raises:
            UserError: as `read`.
        """
        return [run for run in self.plan.runs if self.read(run, utility) is None]

    def under_way(self, number: int, count: int) -> str:
        """What worker `number` of `count` makes next, as the end of a sentence: nothing if it has all."""
        own = self.plan.runs[number::count]
        run = next((run for run in own if not self.path(run).is_file()), None)
        return "" if run is None else f" at subset {run.subset}, seed {run.seed}, or on its way there"

    def finished(self) -> int:
        """How many runs have a cell, without reading any."""
        return sum(self.path(run).is_file() for run in self.plan.runs)


def settings_of(
    problem: Problem,
    unlearn: UnlearnOptions,
    plan: Plan,
    held_out: Dataset | None,
    more: Mapping[str, object],
) -> dict[str, str]:
    """Everything that shapes a cell, by the names that an error would use.

    Args:
        held_out: tokenised held-out pairs, if there are any.
        more: what the prepared problem does not show, such as the model's options.
    """
    options = {**asdict(unlearn), "max_steps": plan.steps, **more}
    objective = problem.objective
    return {
        **{name: str(value) for name, value in options.items()},
        "loss": repr(problem.loss),
        "retain_loss": problem.retain_loss,
        "retain_weight": str(problem.retain_weight),  # that of the problem counts, whatever `unlearn` says
        "objective": described(objective),
        "negatives": digest_of_texts(problem.negative_texts),
        "preferences": digest_of_texts(objective.texts),
        "texts of U": digest_of_texts(problem.utility.texts),
        "texts of the retain term": digest_of_texts(problem.retain_texts),
        "test": digest_of_texts(held_out),
        **({} if problem.joint is None else {"joint pairs": digest_of_texts(problem.joint.texts)}),
    }
