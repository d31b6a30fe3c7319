"""The scores whose fidelity is measured: every estimator and control at φ₀. Called by fidelity.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fidelity import RESULTS, SIZE, STRENGTHS, Bench, Setting, claimed, subset_plan
from u2a.impact.context import Direction
from u2a.impact.curvature import CURVATURES, Curvature, Solution, Solver
from u2a.impact.several import score_curvatures
from u2a.problem import Problem, Task, silent
from u2a.runs.run_folder import write_json
from u2a.trajectory.partition import partition_impact
from u2a.verification.controls import control_scores
from u2a.verification.estimators import ESTIMATORS
from u2a.verification.plan import over_all

BY_RUN = ("trajectory", "partition", "metagradient")
SOLVED = ("residual", "converged", "iterations", "negative_curvature")
CHEAP: dict[str, dict[str, Any]] = {
    "ggn": {"max_iterations": 12},
    "hessian": {"rows": 12, "max_iterations": 10},
}
"""Options of curvatures that would take hours here with their own defaults (50 products each)."""


@dataclass
class Timed:
    """A curvature and the seconds that preparing and solving took."""

    curvature: Curvature
    passes: ClassVar[str] = ""
    seconds: float = 0.0
    solver: Solver | None = None
    elementwise: bool = False

    def prepare(self, problem: Problem, task: Task) -> Solver:
        begin = time.perf_counter()
        self.solver = self.curvature.prepare(problem, task)
        self.seconds += time.perf_counter() - begin
        return self

    def solve(self, gradient: Direction) -> Solution:
        if self.solver is None:
            raise ValueError("prepare comes first")
        begin = time.perf_counter()
        found = self.solver.solve(gradient)
        self.seconds += time.perf_counter() - begin
        return found


STAGES = ("closed forms", "runs", "iterative solvers")


def score_all(bench: Bench, loss: str, seed: int, stage: str, embedding_model: str) -> None:
    """The scores of one stage at φ₀, a file for each estimator and one for the controls."""

    def path(name: str) -> Path:
        return RESULTS / "scores" / f"{loss}-{seed}-{name}.json"

    def once(name: str, make: Callable[[Problem], dict[str, Any]]) -> None:
        with claimed(bench.work / "claims" / path(name).name) as mine:
            if not mine or path(name).is_file():
                return
            problem, begin = bench.problem(loss, seed), time.perf_counter()
            scores = make(problem)
            seconds = time.perf_counter() - begin
            write_json(path(name), {"seconds": seconds, "scores": scores})
            print(f"{path(name).stem}: {seconds:.0f} s", flush=True)

    def curvatures(names: Sequence[str], problem: Problem) -> dict[str, Any]:
        timed = {name: Timed(CURVATURES[name](**CHEAP.get(name, {}))) for name in names}
        found = score_curvatures(problem, timed, at=bench.start)
        for name, table in found.items():
            solved = {key: [getattr(s, key) for s in table.solutions] for key in SOLVED}
            own = {"seconds": timed[name].seconds, "solved": solved}
            write_json(path(name), own | {"scores": {name: both(table.impact, table.utility_cost)}})
        return {}

    def by_run(name: str, strength: str) -> Callable[[Problem], dict[str, Any]]:
        def make(problem: Problem) -> dict[str, Any]:
            own = STRENGTHS[strength]
            if name == "partition":
                found: Any = partition_impact(problem, own, size=SIZE, seed=seed)
            else:
                unlearn = over_all(own, subset_plan(Setting(loss, strength, seed)))
                found = ESTIMATORS[name](problem, bench.start, unlearn, seed, silent)
            return {name: both(found.impact, found.utility_cost)}

        return make

    def controls(problem: Problem) -> dict[str, Any]:
        found = control_scores(
            problem, bench.start, bench.validation, seed=seed, embedding_model=embedding_model
        )
        return {name: values.tolist() for name, values in found.scores.items()} | {"left_out": found.left_out}

    if stage == "closed forms":
        once("controls", controls)
        once("closed-forms", partial(curvatures, [n for n in CURVATURES if n not in CHEAP]))
    elif stage == "runs":
        for strength, name in product(STRENGTHS, BY_RUN):
            once(f"{strength}-{name}", by_run(name, strength))
    else:
        for name in CHEAP:
            once(f"{name}-done", partial(curvatures, [name]))


def both(impact: np.ndarray, utility_cost: np.ndarray | None) -> dict[str, Any]:
    """An estimate as JSON."""
    return {
        "impact": impact.tolist(),
        "utility_cost": None if utility_cost is None else utility_cost.tolist(),
    }
