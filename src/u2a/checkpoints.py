"""Checkpoints of the outer loop: one after every outer step, written whole, read by `--resume`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from u2a.ledger import Ledger, Point, restore
from u2a.problem import Problem, Task
from u2a.runs import whole_file, write_json
from u2a.types import UserError

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
    """The folder `checkpoints/` of a run; None = keep none."""

    folder: Path | None

    def save(self, state: OuterState, ledger: Ledger) -> None:
        """Writes the state and φ at the best point. The JSON comes last: with it the checkpoint is whole."""
        if self.folder is None:
            return
        path = self.folder / f"outer-{state.outer_step:03d}.json"
        with whole_file(path.with_suffix(".safetensors")) as temporary:
            save_file({name: p.contiguous() for name, p in ledger.best_parameters.items()}, temporary)
        kept = {key: value for key, value in vars(state).items() if key not in ("weights", "history")}
        history = [weights.tolist() for weights in state.history]
        points = [vars(point) for point in ledger.points]
        digest = _digest(ledger.problem)
        write_json(path, {**kept, "history": history, "points": points, "negatives": digest})

    def load(self, state: OuterState, ledger: Ledger, task: Task) -> OuterState:
        """The last whole checkpoint's state, with the ledger and φ brought to it; `state` itself if none.

        Raises:
            UserError: the negatives are not those of the checkpoint.
        """
        found = sorted(self.folder.glob("outer-*.json")) if self.folder else []
        if not found:
            return state
        saved: dict[str, Any] = json.loads(found[-1].read_text(encoding="utf-8"))
        if saved.pop("negatives") != _digest(ledger.problem):
            raise UserError(
                "--resume: the negatives, the validation or the retain rows, or their tokens, changed since "
                "the run began"
            )
        ledger.points = [Point(**point) for point in saved.pop("points")]
        _refuse_another_model(ledger)
        ledger.best_parameters = load_file(found[-1].with_suffix(".safetensors"))
        restore(ledger.problem, ledger.best_parameters)
        if any(point.best and point.outer_step > 0 for point in ledger.points):
            ledger.best = ledger.problem.measure(task)
        history = [np.asarray(weights) for weights in saved.pop("history")]
        return OuterState(weights=history[-1], history=history, **saved)


def _refuse_another_model(ledger: Ledger) -> None:
    before, now = ledger.points[0].figures["utility"], ledger.start.utility
    if before is not None and abs(before - now) > _SAME_MODEL * max(1.0, abs(now)):
        raise UserError(
            f"--resume: the original model is another one: its utility was {before:.6g} when the run began "
            f"and is {now:.6g} now"
        )


def _digest(problem: Problem) -> str:
    """Changes when the tokens of some negative, validation or retain text do."""
    digest = hashlib.sha256()
    for texts in (
        problem.negative_texts,
        problem.objective.texts,
        problem.utility.texts,
        problem.retain_texts,
    ):
        digest.update(b"none" if texts is None else b"texts")
        for ids in texts["input_ids"] if texts is not None else ():
            digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
    return digest.hexdigest()
