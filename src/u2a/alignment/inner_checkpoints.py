"""Checkpoints of an inner run: where it is, φ, optimiser, random states and the points measured so far.

A folder each, which the trainer itself goes on from; `PARAMETERS` comes last and seals it.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from u2a import processes
from u2a.alignment.checkpoints import (
    FORMAT,
    INNER,
    OuterState,
    refuse_another_model,
    refuse_other_settings,
    refuse_other_texts,
    take_best,
)
from u2a.alignment.ledger import Ledger, Point, snapshot
from u2a.fingerprint import fingerprint
from u2a.models.sharding import is_sharded
from u2a.problem import Task
from u2a.storage.kept_state import Damaged, Tensors, read_state, write_state
from u2a.training.state import PARAMETERS

if TYPE_CHECKING:
    from u2a.trainer import UnlearnTrainer

log = logging.getLogger("u2a")

_KEPT = 2
"""How many there are at most: a damaged one has one before it."""
_TRAINER_STATE = "trainer_state.json"


@dataclass
class InnerPosition:
    """Where an outer step is within its inner run.

    `objective` is J of the best point before this outer step; `utility` U where the inner run begins;
    `predicted_cost` Σω·c/Ω (None without scores). `halving` counts halvings of the learning rate in this
    outer step. `admissible_points` and `last_utility`, U at the last point, are of the run since the last
    halving; `folder` is what a trainer resumes from, None = from the beginning.
    """

    outer_step: int
    objective: float
    utility: float
    predicted_cost: float | None
    halving: int = 0
    admissible_points: int = 0
    last_utility: float | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class InnerCheckpoints:
    """Those of a run's folder `checkpoints/`; None = keep none. `settings` as in `Checkpoints`."""

    folder: Path | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(
        self, trainer: UnlearnTrainer, position: InnerPosition, state: OuterState, ledger: Ledger
    ) -> None:
        """Keeps everything that the rest of the inner run, and of the outer loop, depends on."""
        if self.folder is None:
            return
        name = f"inner-{position.outer_step:03d}-{position.halving:02d}-{trainer.state.global_step:08d}"
        path = self.folder / name
        with processes.as_one():
            if processes.is_main():
                shutil.rmtree(path, ignore_errors=True)  # one without a seal, of a process that was killed
                path.mkdir(parents=True)
        trainer._save_optimizer_and_scheduler(str(path))
        with processes.as_one():
            trainer._save_rng_state(str(path))
        tensors = {**snapshot(ledger.problem), "weights now": torch.from_numpy(state.weights)}
        tensors |= {f"best {n}": p for n, p in ledger.best_parameters.items()}
        content = {
            "position": asdict(replace(position, folder=None)),
            "learning_rate": state.learning_rate,
            "points": [vars(point) for point in ledger.points],
            "format": FORMAT,
            "texts": fingerprint(ledger.problem),
            "settings": dict(self.settings),
        }
        with processes.as_one():
            if processes.is_main():
                trainer.state.save_to_json(str(path / _TRAINER_STATE))
                write_state(path / PARAMETERS, tensors, {**content, "files": _digests(path)})
                for old in self._sorted()[:-_KEPT]:
                    _remove(old)

    def load(self, state: OuterState, ledger: Ledger, task: Task) -> InnerPosition | None:
        """The position to go on from, in the outer step after `state`'s, with `state` and the ledger brought
        to it; None if there is none, or it holds an optimiser whole that is sharded now."""
        if is_sharded(ledger.problem.policy.model) or processes.are_by_deepspeed():
            return None
        found = processes.from_main(next(self._whole(), None) if processes.is_main() else None)
        if found is None:
            return None
        path, tensors, saved = found
        position = InnerPosition(**saved["position"])
        if position.outer_step != state.outer_step + 1:
            self.clear()  # of steps that will come again
            return None
        refuse_other_texts(saved, ledger.problem)
        refuse_other_settings(saved, self.settings)
        state.weights = tensors["weights now"].numpy().copy()
        state.history.append(state.weights)
        state.learning_rate = saved["learning_rate"]
        ledger.points = [Point(**point) for point in saved["points"]]
        refuse_another_model(ledger)
        take_best(ledger, tensors, task)
        return replace(position, folder=path)

    def clear(self) -> None:
        """Removes them: the outer step is done."""
        for path in self._sorted() if processes.is_main() else ():
            _remove(path)

    def _sorted(self) -> list[Path]:
        found = self.folder.glob("inner-*") if self.folder else ()
        return sorted(path for path in found if INNER.fullmatch(path.name))

    def _whole(self) -> Iterator[tuple[Path, Tensors, Any]]:
        """From the last to the first, without those that are not whole."""
        for path in reversed(self._sorted()):
            if not (path / PARAMETERS).is_file():  # its process was killed
                continue
            try:
                tensors, saved = read_state(path / PARAMETERS)
                if saved["files"] != _digests(path):
                    raise Damaged(f"{path}: files changed after they were written")
            except Damaged as damaged:
                log.warning("%s; going on from the checkpoint before", damaged)
                continue
            yield path, tensors, saved


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != PARAMETERS and path.name[0] != ".")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _remove(folder: Path) -> None:
    """The seal first, so that half a folder is never taken for a whole one."""
    (folder / PARAMETERS).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
