"""From finished cells to figures: predicted sums beside measured changes, for estimators and controls alike.

`verify.json`, numbers only (null = undefined or not measured):

    {"chosen": name of the estimator that is judged, the first in `estimators`
     "negatives": N, "subset_size": negatives in each subset, "subsets": S, "singles": K,
     "seeds": seeds of the inner runs, "repeats": further ones of the first subset,
     "steps": optimiser steps of each run, "runs": how many there were, "seconds": all of them together,
     "estimators": {name: {"validation": {"J": A, "U": A}, "held_out": {"J": A}}},
     "controls": {name: {"validation": {"J": A}, "held_out": {"J": A}}},
     "noise_ceiling": {"validation": {"J": C, "U": C}, "held_out": {"J": C}},
     "single_negatives": {"estimators": …, "controls": …} as above, over the K single negatives}

    A = {"lds", "interval": [low, high], "pearson", "slope", "intercept", "n"}, see `Agreement`
    C = {"lds", "pearson", "noise", "spread", "runs"}, see `Ceiling`

`held_out` is there with held-out pairs, `single_negatives` with at least three, "U" where an estimator gives
utility costs. U is always taken on the retain rows (or preferred validation answers), so there is no
held-out one. Impact is per unit of weight while all N negatives have weight 1; alone, each of |S| members
weighs N/|S| times as much in the inner problem, so that for a score in J's own unit the slope to hope for is
N/|S|.

`subsets.parquet`, one row a subset and seed: `subset`, `seed`, `single` (bool), `members` (list<int64>,
positions of negatives); measured `objective_change`, `utility_change`, `held_out_change` (nullable), `kl`
(nullable), `seconds`; `predicted_NAME` Σ a_i, `predicted_utility_NAME` −Σ c_i and `control_NAME` Σ score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from u2a.runs.run_folder import whole_file
from u2a.verification.agreement import FEWEST_FOR_INTERVAL, agreement, noise_ceiling
from u2a.verification.cells import Cell
from u2a.verification.estimators import Estimate
from u2a.verification.plan import Plan

Array = NDArray[np.float64]

TARGETS = (("validation", "J", "objective"), ("validation", "U", "utility"), ("held_out", "J", "held_out"))
"""Where and what is measured, and the name of the figure in a cell."""

FEWEST_SINGLES = 3
"""Fewer single negatives than this have no rank correlation worth a number."""


@dataclass(frozen=True)
class Comparison:
    """A plan with all its cells, and the scores (N,) that want to predict them."""

    plan: Plan
    cells: Sequence[Cell]
    estimates: Mapping[str, Estimate]
    controls: Mapping[str, Array]

    def changes(self, figure: str) -> Array:
        """Measured changes (M, R): subsets and singles by seeds, without the repeats; NaN = not measured."""
        found = np.full((len(self.plan.members), len(self.plan.seeds)), math.nan)
        for cell in self.cells:
            if cell.seed in self.plan.seeds:
                found[cell.subset, self.plan.seeds.index(cell.seed)] = cell.change(figure)
        return found

    def sums(self, scores: Array) -> Array:
        """Predicted Σ_{i∈S} of scores (N,) over every subset and single: (M,)."""
        return self.plan.members.astype(np.float64) @ scores

    def figures(self) -> dict[str, Any]:
        """What goes into `verify.json`."""
        plan = self.plan
        subsets, singles = slice(0, plan.subsets), slice(plan.subsets, None)
        found: dict[str, Any] = {
            "chosen": next(iter(self.estimates)),
            "negatives": plan.members.shape[1],
            "subset_size": plan.size,
            "subsets": plan.subsets,
            "singles": len(plan.members) - plan.subsets,
            "seeds": list(plan.seeds),
            "repeats": list(plan.repeats),
            "steps": plan.steps,
            "runs": len(self.cells),
            "seconds": round(sum(cell.seconds for cell in self.cells), 3),
            **self._agreements(subsets),
            "noise_ceiling": self._ceilings(),
        }
        if found["singles"] >= FEWEST_SINGLES:
            found["single_negatives"] = self._agreements(singles)
        return _json(found)

    def _agreements(self, rows: slice) -> dict[str, Any]:
        estimators = {name: self._against(estimate, rows) for name, estimate in self.estimates.items()}
        controls = {
            name: self._against(Estimate(scores, None), rows) for name, scores in self.controls.items()
        }
        return {"estimators": estimators, "controls": controls}

    def _against(self, estimate: Estimate, rows: slice) -> dict[str, Any]:
        found: dict[str, dict[str, Any]] = {}
        for scope, what, figure in TARGETS:
            measured = self.changes(figure)[rows]
            if (what == "U" and estimate.utility_cost is None) or not np.isfinite(measured).all():
                continue
            scores = estimate.impact if what == "J" else -np.asarray(estimate.utility_cost)
            found.setdefault(scope, {})[what] = asdict(agreement(self.sums(scores)[rows], measured))
        return found

    def _ceilings(self) -> dict[str, Any]:
        found: dict[str, dict[str, Any]] = {}
        for scope, what, figure in TARGETS:
            measured = self.changes(figure)[: self.plan.subsets]
            if not np.isfinite(measured).all():
                continue
            runs = [
                np.array([cell.change(figure) for cell in self.cells if cell.subset == subset])
                for subset in range(self.plan.subsets)
            ]
            found.setdefault(scope, {})[what] = asdict(noise_ceiling(measured, runs))
        return found

    def write_table(self, path: Path) -> None:
        """Writes `subsets.parquet` whole."""
        cells = self.cells
        at = [cell.subset for cell in cells]
        columns: dict[str, Any] = {
            "subset": pa.array(at, pa.int64()),
            "seed": pa.array([cell.seed for cell in cells], pa.int64()),
            "single": [cell.subset >= self.plan.subsets for cell in cells],
            "members": pa.array([cell.members for cell in cells], pa.list_(pa.int64())),
        }
        for figure in ("objective", "utility", "held_out"):
            columns[f"{figure}_change"] = _nullable([cell.change(figure) for cell in cells])
        columns["kl"] = pa.array([cell.end.get("kl") for cell in cells], pa.float64())
        columns["seconds"] = pa.array([cell.seconds for cell in cells], pa.float64())
        for name, estimate in self.estimates.items():
            columns[f"predicted_{name}"] = self.sums(estimate.impact)[at]
            if estimate.utility_cost is not None:
                columns[f"predicted_utility_{name}"] = self.sums(-estimate.utility_cost)[at]
        for name, scores in self.controls.items():
            columns[f"control_{name}"] = self.sums(scores)[at]
        with whole_file(path) as temporary:
            pq.write_table(pa.table(columns), temporary)


@dataclass(frozen=True)
class Verdict:
    """Whether the judged estimator may be trusted, and that as a sentence."""

    trusted: bool
    sentence: str


def verdict(figures: Mapping[str, Any]) -> Verdict:
    """Trusted when, on validation pairs, its LDS is above every control's and its interval above 0; never
    with too few subsets for an interval."""
    chosen = figures["chosen"]
    found = figures["estimators"][chosen]["validation"]["J"]
    lds, (low, high) = found["lds"], found["interval"]
    if lds is None:
        why = "what it predicts, or what was measured, is the same for every subset"
        return Verdict(False, f"Finding: the LDS of {chosen} is undefined: {why}.")
    interval = f"LDS {lds:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")
    rivals = {name: control["validation"]["J"]["lds"] for name, control in figures["controls"].items()}
    known = {name: value for name, value in rivals.items() if value is not None}
    best = max(known, key=lambda name: known[name]) if known else None
    reasons = []
    if best is not None and known[best] >= lds:
        reasons.append(f"the control {best} reaches {known[best]:.2f}")
    if found["n"] < FEWEST_FOR_INTERVAL:
        reasons.append(f"so few cannot tell: take {FEWEST_FOR_INTERVAL} or more --subsets, better 16")
    elif low is None or low <= 0:
        reasons.append(f"the 95 % interval of {chosen} is not above 0 (more --subsets would narrow it)")
    about = f"{chosen} has {interval} on validation pairs over {found['n']} subsets"
    if reasons:
        return Verdict(False, f"Finding: {about}, but {' and '.join(reasons)}.")
    beaten = f", above every control (best: {best} {known[best]:.2f})" if best is not None else ""
    return Verdict(True, f"{about}{beaten}.")


def _nullable(values: Sequence[float]) -> pa.Array:
    return pa.array([None if math.isnan(value) else value for value in values], pa.float64())


def _json(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: _json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
