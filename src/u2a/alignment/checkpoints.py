"""Checkpoints of the outer loop: one after every outer step, written whole, read by `--resume`."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from u2a import processes
from u2a.alignment.ledger import Ledger, Point, restore
from u2a.fingerprint import described, fingerprint, named
from u2a.problem import Problem, Task
from u2a.storage.files import PART
from u2a.storage.kept_state import Damaged, Tensors, read_state, write_state
from u2a.types import UserError

log = logging.getLogger("u2a")

OUTER, INNER = re.compile(r"outer-\d{3,}\.safetensors"), re.compile(r"inner-\d{3,}-\d{2,}-\d{8,}")
"""Names of checkpoints."""
_OURS = re.compile(
    rf"{OUTER.pattern}|{INNER.pattern}|scores-\d{{3,}}(\.safetensors)?"
    rf"|\.(outer|scores)-\d{{3,}}\.safetensors\.[0-9a-f]{{16}}{re.escape(PART)}"
)
"""Names of what a run keeps, and of what a kill cut off."""
FORMAT = 2
"""Of checkpoints; 1, without a number, did not know the objective, nor where responses begin."""
_SAME_MODEL = 0.01
"""Largest relative difference of U at the original that arithmetic may make between two machines."""


@dataclass
class OuterState:
    """What one outer step hands to the next.

    `weights` (N,) are the current ones, `history` those of every outer step so far; `scale` s of the scores
    is frozen at the first step; `cost_calibration` is measured over predicted utility cost (None before the
    first measurement); `outcome` is the sentence of the stopping rule that ended the loop, if one did.
    """

    weights: np.ndarray
    scale: float
    learning_rate: float
    outer_step: int = 0
    cost_calibration: float | None = None
    outcome: str = ""
    history: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoints:
    """The folder `checkpoints/` of a run; None = keep none. `settings`: what shapes the run, by name; with
    other ones it is not gone on with."""

    folder: Path | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def scores(self, outer_step: int) -> Path | None:
        """Where the scores of an outer step are kept; those at the original model have number 0."""
        return self.folder / f"scores-{outer_step:03d}" if self.folder else None

    def clear(self) -> None:
        """Removes what an earlier run kept here: a later `--resume` must not take it for this run's."""
        if self.folder is None or not self.folder.is_dir() or not processes.is_main():
            return
        for path in list(self.folder.iterdir()):
            if not _OURS.fullmatch(path.name):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def save(self, state: OuterState, ledger: Ledger) -> None:
        """Writes the state and φ at the best point."""
        if self.folder is None:
            return
        tensors = {f"best {name}": p for name, p in ledger.best_parameters.items()}
        tensors |= {f"weights {k}": torch.from_numpy(w) for k, w in enumerate(state.history)}
        content = {
            "state": {key: value for key, value in vars(state).items() if key not in ("weights", "history")},
            "points": [vars(point) for point in ledger.points],
            "format": FORMAT,
            "texts": fingerprint(ledger.problem),
            "settings": dict(self.settings),
        }
        with processes.as_one():
            if processes.is_main():
                write_state(self.folder / f"outer-{state.outer_step:03d}.safetensors", tensors, content)

    def load(self, state: OuterState, ledger: Ledger, task: Task) -> OuterState:
        """The last whole checkpoint's state, with the ledger and φ brought to it; `state` itself if none.

        Raises:
            UserError: the rows, the model or the settings are not those of the checkpoint.
        """
        found = next(self._whole(), None) if processes.is_main() else None
        tensors, saved = processes.from_main(found) or ({}, None)
        if saved is None:
            return state
        refuse_other_texts(saved, ledger.problem)
        refuse_other_settings(saved, self.settings)
        ledger.points = [Point(**point) for point in saved["points"]]
        refuse_another_model(ledger)
        take_best(ledger, tensors, task)
        history = [tensors[f"weights {k}"].numpy().copy() for k in range(saved["state"]["outer_step"])]
        return OuterState(weights=history[-1], history=history, **saved["state"])

    def _whole(self) -> Iterator[tuple[Tensors, Any]]:
        """Checkpoints from the last to the first, without damaged ones."""
        for path in sorted(self.folder.glob("outer-*"), reverse=True) if self.folder else ():
            if not OUTER.fullmatch(path.name):
                continue
            try:
                yield read_state(path)
            except Damaged as damaged:
                log.warning("%s; going on from the checkpoint before", damaged)


def take_best(ledger: Ledger, tensors: Tensors, task: Task) -> None:
    """Brings the ledger and φ to the best point, which is measured again where it is not the original."""
    kept = "best "
    ledger.best_parameters = {
        name.removeprefix(kept): tensor for name, tensor in tensors.items() if name.startswith(kept)
    }
    restore(ledger.problem, ledger.best_parameters)
    if any(point.best and point.outer_step > 0 for point in ledger.points):
        ledger.best = ledger.problem.measure(task)


def settings_of(problem: Problem, options: Sequence[Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that shapes a run, by name, but for its rows and how many outer steps there are.

    Args:
        options: dataclasses of options. more: what they do not hold.
    """
    trained = problem.policy.trainable().values()
    found = {name: value for part in options for name, value in asdict(part).items()}
    del found["outer_steps"]
    return {
        **found,
        **more,
        "loss": named(problem.loss),
        "objective": described(problem.objective),
        "retain_loss": problem.retain_loss,
        "retain_weight": problem.retain_weight,
        "trained": f"{len(trained)} tensors of {sum(p.numel() for p in trained)} elements",
    }


def refuse_other_texts(saved: Mapping[str, Any], problem: Problem) -> None:
    """Compares the texts, and what J is, that a checkpoint was made with, with those of now.

    Raises:
        UserError: they differ, or an earlier version made it.
    """
    if saved.get("format") != FORMAT:
        raise UserError(
            "--resume: an earlier version of u2a began this run: begin a new one in another --output"
        )
    if saved["texts"] != fingerprint(problem):
        raise UserError(
            "--resume: the negatives, the validation or the retain rows, or their tokens, changed since "
            "the run began: keep them as they were, or begin a new run in another --output"
        )


def refuse_other_settings(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Compares the settings that a checkpoint was made with, where it has them, with those of now.

    Raises:
        UserError: some differ; names them.
    """
    before = saved.get("settings", {})
    changed = [f"{k} was {before[k]} and is {v}" for k, v in settings.items() if before.get(k, v) != v]
    if changed:
        raise UserError(f"resume: {'; '.join(changed)}: keep them, or begin a new run in another folder")


def refuse_another_model(ledger: Ledger) -> None:
    """Compares U at the original as it was when the run began with U now.

    Raises:
        UserError: they differ by more than arithmetic may make.
    """
    before, now = ledger.points[0].figures["utility"], ledger.start.utility
    if before is not None and abs(before - now) > _SAME_MODEL * max(1.0, abs(now)):
        raise UserError(
            f"--resume: the original model is another one: its utility was {before:.6g} when the run began "
            f"and is {now:.6g} now"
        )
