"""The impact table: for every negative, predicted gain of J and predicted loss of U per unit of weight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from u2a import processes
from u2a.data.as_text import as_text
from u2a.fingerprint import fingerprint, fingerprint_of_model, named
from u2a.impact.aims import Aims, aim
from u2a.impact.blocks import WHOLE, Blocks
from u2a.impact.context import ScoringContext, norm
from u2a.impact.curvature import Curvature, Solution
from u2a.impact.scores import (
    Derivatives,
    SelfCheck,
    directional_derivatives,
    impact,
    utility_cost,
)
from u2a.losses import UnlearningLoss
from u2a.models.sharding import is_sharded
from u2a.passes.dataset import refuse_non_finite
from u2a.problem import Measurement, Problem, Task, silent
from u2a.runs.run_folder import whole_file

if TYPE_CHECKING:
    from datasets import Dataset


_BLOCK = 1000
_TEXT, _NUMBER = pa.string(), pa.float64()
SCHEMA = pa.schema(
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
"""Columns of `impact.parquet`."""


@dataclass(frozen=True)
class ImpactTable:
    """One entry a negative, all (N,) float64 but `n_tokens` (int64), in the order of the negatives.

    `impact` a_i = dJ/dω_i: positive = unlearning it raises alignment. `utility_cost` c_i = −dU/dω_i:
    positive = usefulness lost, in the unit of U. `loss` is ℓ_i at the φ that was scored. None where the
    route did not give it: `impact_se`, the standard error of a_i over validation examples; `grad_norm`
    ‖∇ℓ_i‖; `cosine`, that of −∇ℓ_i and ∇J (what LESS selects by). `self_checks` are what the comparison of
    `fd` with exact gradients found; `method` is the route that `auto` took; `solutions` say how well H·v = g
    was solved for ∇J and for ∇U.
    """

    impact: np.ndarray
    utility_cost: np.ndarray
    loss: np.ndarray
    n_tokens: np.ndarray
    self_checks: tuple[SelfCheck, ...] = ()
    impact_se: np.ndarray | None = None
    grad_norm: np.ndarray | None = None
    cosine: np.ndarray | None = None
    method: str = ""
    solutions: tuple[Solution, ...] = ()

    def __repr__(self) -> str:
        """How many would help and harm: the arrays and solutions are long."""
        helpful, harmful = int((self.impact > 0).sum()), int((self.impact < 0).sum())
        route = f"; by {self.method}" if self.method else ""
        return (
            f"ImpactTable({len(self.impact)} negatives: {helpful} with positive impact, {harmful} with "
            f"negative{route})"
        )

    def write(self, path: Path, negatives: Dataset) -> None:
        """Writes `impact.parquet` (docs/reference/files.md) whole, in blocks, with each negative's text."""
        with whole_file(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
            for begin in range(0, len(self.impact), _BLOCK):
                rows = negatives[begin : begin + _BLOCK]
                part = slice(begin, begin + _BLOCK)
                columns = {
                    "row": rows["row"],
                    "id": rows["id"],
                    "prompt": [as_text(prompt) for prompt in rows["prompt"]],
                    "response": rows["response"],
                }
                for name in SCHEMA.names[4:]:
                    values = getattr(self, name)
                    columns[name] = [None] * len(rows["row"]) if values is None else values[part]
                writer.write_table(pa.table(columns, schema=SCHEMA))


def score_impact(
    problem: Problem,
    *,
    curvature: Curvature | None = None,
    scoring: str = "auto",
    self_check: int = 4,
    se_groups: int = 16,
    at: Measurement | None = None,
    keep: Path | str | None = None,
    task: Task = silent,
) -> ImpactTable:
    """Impact and utility cost of every negative at the current φ (docs/explanation/mathematics.md).

    Args:
        curvature: H; default `Diagonal()`, the most faithful for its cost (docs/results.md).
        scoring: `auto`, `fd`, `jvp` or `exact`.
        self_check: examples on which `fd` is compared with exact gradients.
        se_groups: `impact_se` is the spread of the impact over this many groups of validation examples, drawn
            by a fixed seed (0 = none). Only where more directions cost next to nothing: `exact` in batches
            with a curvature in closed form. Fewer groups where φ is so large that their gradients would take
            more than 2 GiB; no standard error below 4 groups.
        at: the measurement at this very φ, if there is one: saves the forward passes over its texts.
        keep: folder for finished blocks, and the table beside it, `keep`.safetensors, when it is whole: what
            is there is taken instead of made again, if it is of the same texts at the same φ, by the same
            loss, retain term, curvature and route. Other files in the folder are left alone.

    Raises:
        GuardStop: a log-prob, gradient or score is not finite; names the row.

    Example:
        >>> from u2a import load_negatives, load_policy, load_preferences, prepare, score_impact, tiny_model
        >>> bad = [{"prompt": "Hello!", "completion": "Go away."}, {"prompt": "Tea?", "completion": "No."}]
        >>> pairs = [{"prompt": "Coffee?", "chosen": "Yes, please.", "rejected": "No."}]
        >>> problem = prepare(
        ...     load_policy(tiny_model(), lora_rank=2),
        ...     negatives=load_negatives(bad), preferences=load_preferences(pairs),
        ... )
        >>> table = score_impact(problem)
        >>> table.impact.shape, table.utility_cost.shape
        ((2,), (2,))
        >>> worth_unlearning = table.impact > 0
    """
    from u2a.impact.kept_table import keep_table, kept_table

    at = at or problem.measure(task)
    blocks = _blocks_of(problem, at, keep, f"{named(curvature)} {scoring} {se_groups}")
    if (kept := kept_table(blocks)) is not None:
        return kept
    context = ScoringContext.of(problem)
    aimed = aim(problem, at, curvature=curvature, scoring=scoring, se_groups=se_groups, task=task)
    method, directions = aimed.method, aimed.directions
    rows = len(problem.negative_texts) * (1 if method == "exact" else len(directions))
    with task("scoring the negatives along ∇J and ∇U", rows) as progress:
        found = directional_derivatives(
            context,
            problem.negative_texts,
            directions,
            method=method,
            base=at.s_negatives,
            self_check=self_check,
            progress=progress,
            blocks=blocks,
        )
    table = table_of(problem, aimed.aims, found, aimed.solutions)
    with processes.as_one():
        keep_table(table, blocks)
    return table


def _blocks_of(problem: Problem, at: Measurement, keep: Path | str | None, how: str) -> Blocks:
    if keep is None:
        return WHOLE
    model = problem.policy.model
    exact = fingerprint(problem) + ("" if is_sharded(model) else f" {fingerprint_of_model(model)}")
    term = f"{problem.retain_loss} {problem.retain_weight}"
    # rounded, since another number of threads adds up in another order
    values = f"J {at.objective:.4g} U {at.utility:.4g}"
    return Blocks(Path(keep), f"{exact} {values} {named(problem.loss)} {term} {how}")


def table_of(
    problem: Problem, aims: Aims, found: Derivatives, solutions: tuple[Solution, ...]
) -> ImpactTable:
    """The table from derivatives along the solutions for ∇J and for ∇U and, by the exact route, along ∇J
    itself and along the solutions for its parts: (2 or 3 + parts, N)."""
    return scored_rows(
        problem.loss, problem.negatives, problem.lengths, problem.reference, aims, found, solutions
    )


def scored_rows(
    loss: UnlearningLoss,
    negatives: Dataset,
    lengths: Tensor,
    reference: Tensor,
    aims: Aims,
    found: Derivatives,
    solutions: tuple[Solution, ...],
) -> ImpactTable:
    """The same for any N rows `negatives`: `lengths` |y_i| and `reference` s_ref are (N,).

    Raises:
        GuardStop: a score is not finite; names the row.
    """
    s, lengths, reference = found.s, lengths.double(), reference.double()
    slope = loss.derivative(s, reference, lengths)
    gain, cost = impact(slope, found.along[0]), utility_cost(slope, found.along[1])
    for values, what in ((gain, "impact"), (cost, "utility cost")):
        refuse_non_finite(values, negatives, what)
    scores = gain.numpy()
    extra: dict[str, np.ndarray] = {}
    if found.square_norm is not None:
        extra["grad_norm"] = (slope * found.square_norm.sqrt()).numpy()
        largest = extra["grad_norm"] * norm(aims.of_j)
        raw = impact(slope, found.along[2]).numpy()
        extra["cosine"] = np.divide(raw, largest, out=np.zeros_like(raw), where=largest > 0)
    if aims.shares:
        extra["impact_se"] = _standard_error(impact(slope, found.along[3:]).numpy(), scores, aims.shares)
    return ImpactTable(
        impact=scores,
        utility_cost=cost.numpy(),
        loss=loss(s, reference, lengths).numpy(),
        n_tokens=lengths.long().numpy(),
        self_checks=found.self_checks,
        method=found.method,
        solutions=solutions,
        **extra,
    )


def _standard_error(by_group: np.ndarray, mean: np.ndarray, shares: list[float]) -> np.ndarray:
    """Standard error of the mean of G groups, (G, N), (N,) -> (N,).

    √(Σ_g w_g²·(a_g − a)²·G/(G−1)) with w_g the groups' shares: for one term a group that is the usual
    s/√P, and whatever the grouping its square has the same expectation.
    """
    groups = len(shares)
    weights = np.square(shares)[:, None]
    return np.sqrt((weights * np.square(by_group - mean)).sum(0) * groups / (groups - 1))
