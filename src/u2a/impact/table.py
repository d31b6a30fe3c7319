"""The impact table: for every negative, predicted gain of J and predicted loss of U per unit of weight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from u2a.impact.curvature import Identity
from u2a.impact.gradient import Direction, objective_gradient
from u2a.impact.scores import ScoringContext, SelfCheck, directional_derivatives, impact, utility_cost
from u2a.problem import Measurement, Problem, Task, silent
from u2a.runs import whole_file

if TYPE_CHECKING:
    from datasets import Dataset


_BLOCK = 1000
_TEXT, _NUMBER = pa.string(), pa.float64()
_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "id": _TEXT,
        "prompt": _TEXT,
        "response": _TEXT,
        "impact": _NUMBER,
        "utility_cost": _NUMBER,
        "loss": _NUMBER,
        "n_tokens": pa.int64(),
        "impact_se": _NUMBER,
        "cosine": _NUMBER,
        "grad_norm": _NUMBER,
    }
)


class Curvature(Protocol):
    """Solves with the curvature H of the inner problem."""

    def solve(self, gradient: Direction) -> Direction:
        """H⁻¹·g."""
        ...


@dataclass(frozen=True)
class ImpactTable:
    """One entry a negative, all (N,) float64 but `n_tokens` (int64), in the order of the negatives.

    `impact` a_i = dJ/dω_i: positive = unlearning it raises alignment. `utility_cost` c_i = −dU/dω_i:
    positive = usefulness lost, in the unit of U. `loss` is ℓ_i at the φ that was scored. `self_checks` are
    what the comparison of `fd` with exact gradients found, for ∇J and for ∇U.
    """

    impact: np.ndarray
    utility_cost: np.ndarray
    loss: np.ndarray
    n_tokens: np.ndarray
    self_checks: tuple[SelfCheck, ...] = ()

    def write(self, path: Path, negatives: Dataset) -> None:
        """Writes `impact.parquet` (design, section 4) whole, block by block, with each negative's text."""
        with whole_file(path) as temporary, pq.ParquetWriter(temporary, _SCHEMA) as writer:
            for begin in range(0, len(self.impact), _BLOCK):
                rows = negatives[begin : begin + _BLOCK]
                part = slice(begin, begin + _BLOCK)
                columns = {
                    "row": rows["row"],
                    "id": rows["id"],
                    "prompt": [as_text(prompt) for prompt in rows["prompt"]],
                    "response": rows["response"],
                    "impact": self.impact[part],
                    "utility_cost": self.utility_cost[part],
                    "loss": self.loss[part],
                    "n_tokens": self.n_tokens[part],
                    **dict.fromkeys(("impact_se", "cosine", "grad_norm"), [None] * len(rows["row"])),
                }
                writer.write_table(pa.table(columns, schema=_SCHEMA))


def as_text(prompt: list[dict[str, Any]]) -> str:
    """A conversation as one string: the bare content of a single user turn, else `role: content` lines."""
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def score_impact(
    problem: Problem,
    *,
    curvature: Curvature | None = None,
    scoring: str = "fd",
    self_check: int = 4,
    at: Measurement | None = None,
    task: Task = silent,
) -> ImpactTable:
    """Impact and utility cost of every negative at the current φ (design, section 2).

    Args:
        curvature: H; default `Identity()`.
        scoring: `fd`, `jvp` or `exact`.
        self_check: examples on which `fd` is compared with exact gradients.
        at: the measurement at this very φ, if there is one: saves the forward passes over its texts.

    Raises:
        GuardStop: a log-prob, gradient or score is not finite; names the row.
    """
    curvature = curvature or Identity()
    at = at or problem.measure(task)
    context = ScoringContext(
        problem.policy.model, problem.policy.trainable(), problem.max_tokens, problem.pad_token_id
    )
    s = (problem.measure_negatives(task) if at.s_negatives is None else at.s_negatives).double()
    lengths = problem.lengths.double()
    reference = problem.reference.double()
    slope = problem.loss.derivative(s, reference, lengths)
    along, checks = [], []
    for name, goal, s_goal in (
        ("J", problem.objective, at.s_objective),
        ("U", problem.utility, at.s_utility),
    ):
        with task(f"gradient of {name}", len(goal.texts)) as progress:
            gradient = objective_gradient(
                context.model,
                context.parameters,
                goal,
                s_goal,
                max_tokens=problem.max_tokens,
                pad_token_id=problem.pad_token_id,
                progress=progress,
            )
        passes = 2 if scoring == "fd" else 1
        with task(f"scoring along the gradient of {name}", passes * len(s)) as progress:
            values, check = directional_derivatives(
                context,
                problem.negative_texts,
                curvature.solve(gradient),
                method=scoring,
                self_check=self_check,
                progress=progress,
            )
        along.append(values)
        checks += [check] if check else []
    return ImpactTable(
        impact=impact(slope, along[0]).numpy(),
        utility_cost=utility_cost(slope, along[1]).numpy(),
        loss=problem.loss(s, reference, lengths).numpy(),
        n_tokens=lengths.long().numpy(),
        self_checks=tuple(checks),
    )
