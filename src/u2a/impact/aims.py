"""What negatives are scored along: ∇J and ∇U, whole or in parts, and the solutions of H·v = g for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from u2a.impact.context import Direction, ScoringContext
from u2a.impact.curvature import Curvature, Diagonal, Solution
from u2a.impact.gradient import (
    combined,
    objective_coefficients,
    objective_gradient,
    weighted_logprob_gradient,
)
from u2a.impact.per_example import is_batched
from u2a.impact.scores import cheapest_method
from u2a.objectives import masses_of
from u2a.problem import Measurement, Problem, Task, silent

_SE_BYTES = 2 << 30
"""Most memory for the gradients behind `impact_se`: fewer groups for a larger adapter."""
_FEWEST_GROUPS = 4
"""Fewer groups than this have no spread worth a number."""


@dataclass(frozen=True)
class Aims:
    """∇J and ∇U; `parts` are gradients of groups of J's terms, `shares` how much each
    counts in J, adding up to 1."""

    of_j: Direction
    of_u: Direction
    parts: list[Direction]
    shares: list[float]


@dataclass(frozen=True)
class Aimed:
    """What negatives are scored along: `directions` are v for ∇J and for ∇U and, by the exact route, ∇J
    itself and v for each of its parts; `method` is the route."""

    aims: Aims
    solutions: tuple[Solution, Solution]
    directions: list[Direction]
    method: str


def aim(
    problem: Problem,
    at: Measurement,
    *,
    curvature: Curvature | None = None,
    scoring: str = "auto",
    se_groups: int = 16,
    task: Task = silent,
) -> Aimed:
    """The directions at the current φ, which `at` was measured at; arguments as in `score_impact`. Negatives
    matter only to curvatures that are made of them."""
    context = ScoringContext.of(problem)
    method = cheapest_method(context, 2) if scoring == "auto" else scoring
    solver = (curvature or Diagonal()).prepare(problem, task)
    cheap = method == "exact" and is_batched(context) and solver.elementwise
    aims = aims_of(problem, context, at, _affordable_groups(context, se_groups) if cheap else 0, task)
    solutions = solver.solve(aims.of_j), solver.solve(aims.of_u)
    directions = [solution.direction for solution in solutions]
    if method == "exact":
        directions.append(aims.of_j)
        directions += [solver.solve(part).direction for part in aims.parts]
    return Aimed(aims, solutions, directions, method)


def aims_of(problem: Problem, context: ScoringContext, at: Measurement, groups: int, task: Task) -> Aims:
    """∇J and ∇U at the current φ, which `at` was measured at; ∇J in at most `groups` parts (0 = whole)."""
    objective, s = problem.objective_of(at), at.s_objective
    with task("gradients of J and U", len(objective.texts) + len(problem.utility.texts)) as progress:
        of_u = objective_gradient(context, problem.utility, at.s_utility, progress=progress)
        terms = len(objective.terms(s))
        groups = min(groups, terms)
        if groups < _FEWEST_GROUPS:
            return Aims(objective_gradient(context, objective, s, progress=progress), of_u, [], [])
        parts, shares, masses = [], [], masses_of(objective, terms)
        for group in np.array_split(np.random.default_rng(0).permutation(terms), groups):
            share = float(masses[group].sum() / masses.sum())
            # of J on this group alone, which is no mean of its terms where J is a ratio
            coefficients = objective_coefficients(objective, s, group) * (len(group) / terms / share)
            parts.append(weighted_logprob_gradient(context, objective.texts, coefficients, progress=progress))
            shares.append(share)
    return Aims(combined(parts, shares), of_u, parts, shares)


def _affordable_groups(context: ScoringContext, asked: int) -> int:
    """At most `asked` groups; each has its gradient, its solution and its place among the directions."""
    each = 3 * sum(p.numel() * p.element_size() for p in context.parameters.values())
    groups = min(asked, _SE_BYTES // each)
    return groups if groups >= _FEWEST_GROUPS else 0
