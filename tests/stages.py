"""A method's stage on a tiny problem."""

from __future__ import annotations

from typing import Any

from problems import answers, pairs, tiny_problem
from u2a.baselines import Budget, Stage, Watch
from u2a.impact.table import score_impact

GOOD_ANSWERS = [("When does water boil?", "At 100 degrees."), ("What do I mix?", "Flour and water.")]


def tiny_stage(folder: Any, *, steps: int = 2, rate: float = 1e-2, seed: int = 0, **more: Any) -> Stage:
    """A stage that every method can be trained on, at φ₀; `more` goes to `tiny_problem`."""
    problem = tiny_problem(**more)
    start = problem.measure(negatives=True)
    return Stage(
        problem=problem,
        validation=pairs(),
        start=start,
        scores=lambda: score_impact(problem, at=start, se_groups=0, scoring="exact"),
        score=lambda at: score_impact(problem, at=at, se_groups=0, scoring="exact"),
        watch=Watch(problem, Budget(steps=steps, batch_size=4)),
        rate=rate,
        seed=seed,
        folder=str(folder),
        training=pairs(),
        mixture=answers(GOOD_ANSWERS),
        scorer=lambda _prompts, texts: [float(len(text)) for text in texts],
    )
