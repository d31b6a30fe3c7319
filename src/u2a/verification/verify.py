"""Impact scores put to the test from Python: predicted sums against subsets unlearned for real."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2a.config import UnlearnOptions
from u2a.fingerprint import fingerprint_of_model
from u2a.problem import Problem, Task, silent
from u2a.types import UserError
from u2a.verification.cells import Cells, settings_of
from u2a.verification.comparison import Comparison, Verdict, verdict
from u2a.verification.controls import control_scores
from u2a.verification.estimators import ESTIMATORS, Estimate, Estimator
from u2a.verification.plan import make_plan, over_all
from u2a.verification.subsets import subset_size
from u2a.verification.truth import GroundTruth, held_out_objective

if TYPE_CHECKING:
    from datasets import Dataset


_FEWEST_SUBSETS = 4
"""With three, every sixth order of them is that of the scores."""


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    `figures` are what `u2a verify` writes to verify.json (`u2a.verification.comparison` describes them),
    `comparison` has the runs and scores behind them, `verdict` whether the first estimator may be trusted,
    and why.
    """

    comparison: Comparison = field(repr=False)
    figures: Mapping[str, Any] = field(repr=False)
    verdict: Verdict

    @property
    def rank_correlation(self) -> float | None:
        """LDS of the first estimator on the validation pairs, in [−1, 1]; None = undefined."""
        return self.figures["estimators"][self.figures["chosen"]]["validation"]["J"]["lds"]


def verify(
    problem: Problem,
    *,
    estimators: Sequence[str] | Mapping[str, Estimator] = ("diagonal",),
    unlearn: UnlearnOptions | None = None,
    preferences: Dataset | None = None,
    held_out: Dataset | None = None,
    subsets: int = 16,
    subset_share: str = "25%",
    singles: int = 0,
    seeds: int = 1,
    repeats: int = 2,
    folder: Path | str | None = None,
    seed: int = 0,
    task: Task = silent,
) -> Verification:
    """May I trust the impact scores? Unlearns subsets for real and compares, as `u2a verify` does.

    Args:
        problem: from `prepare`, with the policy at the original model; it is there again after.
        estimators: names in `u2a.verification.estimators.ESTIMATORS`, or functions by name; the first is
            judged.
        unlearn: settings of the real runs.
        preferences: the validation rows, for the control BM25; left out without them.
        held_out: pairs on which J is measured as well.
        subsets, subset_share, singles, seeds, repeats: what is unlearned, as the flags of those names.
        folder: keeps finished runs; called again with the same arguments, it goes on. None = nothing is kept.

    Raises:
        UserError: no such estimator, fewer than 4 subsets, or subsets cannot be drawn; `folder` holds runs
            of other settings.
        GuardStop: something was not finite.

    Example:
        >>> from u2a import load_negatives, load_policy, load_preferences, prepare, verify, tiny_model
        >>> bad = [{"prompt": f"Question {i}?", "completion": "No. " * (1 + i)} for i in range(4)]
        >>> pairs = [{"prompt": f"Is {i} odd?", "chosen": "Maybe.", "rejected": "No."} for i in (1, 2)]
        >>> problem = prepare(
        ...     load_policy(tiny_model(), lora_rank=2),
        ...     negatives=load_negatives(bad), preferences=load_preferences(pairs),
        ... )
        >>> found = verify(problem, subsets=4, subset_share="50%", repeats=0)
        >>> found.figures["runs"], found.figures["chosen"]
        (4, 'diagonal')
        >>> -1 <= found.rank_correlation <= 1
        True
    """
    if subsets < _FEWEST_SUBSETS:
        raise UserError(f"subsets={subsets}: a rank correlation of fewer than {_FEWEST_SUBSETS} says nothing")
    chosen = _named(estimators)
    unlearn = unlearn or UnlearnOptions()
    count = len(problem.negatives)
    plan = make_plan(
        count,
        subset_size(subset_share, count),
        unlearn,
        subsets=subsets,
        singles=singles,
        seeds=seeds,
        repeats=repeats,
        seed=seed,
    )
    objective = held_out_objective(problem, held_out, task) if held_out is not None else None
    start = problem.measure(task, negatives=True)
    with tempfile.TemporaryDirectory() as scratch:
        texts = objective.texts if objective is not None else None
        settings = settings_of(
            problem, unlearn, plan, texts, {"model": fingerprint_of_model(problem.policy.model)}
        )
        cells = Cells(Path(folder or scratch), plan, settings)
        cells.folder.mkdir(parents=True, exist_ok=True)
        truth = GroundTruth(problem, unlearn, cells, start, objective)
        estimates: dict[str, Estimate] = {}
        for name, estimate in chosen.items():
            try:
                estimates[name] = estimate(problem, start, over_all(truth.unlearn, plan), seed, task)
            finally:
                truth.restore()
        rows = preferences if preferences is not None else problem.negatives.select_columns(["prompt"])
        controls = control_scores(problem, start, rows, seed=seed, task=task)
        truth.run_remaining(task)
        done = [cell for cell in map(cells.read, plan.runs) if cell is not None]
    comparison = Comparison(plan, done, estimates, controls.scores)
    figures = comparison.figures()
    return Verification(comparison, figures, verdict(figures))


def _named(estimators: Sequence[str] | Mapping[str, Estimator]) -> dict[str, Estimator]:
    if not estimators:
        raise UserError(f"estimators: name at least one of {', '.join(ESTIMATORS)}")
    if isinstance(estimators, Mapping):
        return dict(estimators)
    for name in estimators:
        if name not in ESTIMATORS:
            raise UserError(f"estimators: {name}: take some of {', '.join(ESTIMATORS)}")
    return {name: ESTIMATORS[name] for name in estimators}
