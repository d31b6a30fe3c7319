"""Several curvatures compared at the price of one: ∇J and ∇U once, and one pass over the negatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from u2a.impact.aims import aims_of
from u2a.impact.context import Direction, ScoringContext
from u2a.impact.curvature import Curvature, Solution
from u2a.impact.scores import directional_derivatives
from u2a.impact.table import ImpactTable, table_of
from u2a.problem import Measurement, Problem, Task, silent
from u2a.types import UserError


def score_curvatures(
    problem: Problem,
    curvatures: Mapping[str, Curvature],
    *,
    at: Measurement,
    refused: dict[str, str] | None = None,
    task: Task = silent,
) -> dict[str, ImpactTable]:
    """The impact table by each of several curvatures at the current φ, without standard errors.

    ∇J and ∇U are taken once. Each curvature costs its own `passes`; then one backward pass over the
    negatives compares every gradient with all solutions. Two directions a curvature are kept in memory.

    Args:
        at: the measurement at this very φ.
        refused: takes the reason of each curvature that does not suit this problem, which is then left out
            of the result; None = raise.

    Raises:
        UserError: a curvature does not suit this problem. GuardStop: something is not finite.
    """
    context = ScoringContext.of(problem)
    aims = aims_of(problem, context, at, 0, task)
    solved: dict[str, tuple[Solution, Solution]] = {}
    for name, curvature in curvatures.items():
        try:
            solver = curvature.prepare(problem, task)
            solved[name] = solver.solve(aims.of_j), solver.solve(aims.of_u)
        except UserError as error:
            if refused is None:
                raise
            refused[name] = str(error)
    directions: list[Direction] = [found.direction for pair in solved.values() for found in pair]
    texts = problem.negative_texts
    with task("scoring the negatives along ∇J and ∇U", len(texts)) as progress:
        found = directional_derivatives(
            context, texts, [*directions, aims.of_j], method="exact", progress=progress
        )
    tables = {}
    for place, (name, solutions) in enumerate(solved.items()):
        own = replace(found, along=found.along[[2 * place, 2 * place + 1, -1]])
        tables[name] = table_of(problem, aims, own, solutions)
    return tables
