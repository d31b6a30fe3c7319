"""Scores that a user might have taken instead of impact: an estimator that does not beat them is not needed.

Every control has one entry a negative and one sign, fixed here before anything is measured: larger = expected
to be more worth unlearning.

- `random`: a seeded draw; what agreement is worth by chance.
- `length`: |y_i|, response tokens: longer answers move the model more.
- `loss`: ℓ_i at the original model: more of it is left to forget. All the same for npo at the reference.
- `mean_logprob`: s_i/|y_i|: the model is likely to say it again.
- `gradient_norm`: ‖∇ℓ_i‖: it moves the model more.
- `cosine`: that of −∇ℓ_i and ∇J, what LESS selects by (Xia et al. 2024, arXiv 2402.04333), without Adam.
- `bm25`, `embedding`: it is like the rejected validation answers and unlike the chosen ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2a.impact.curvature import Identity
from u2a.impact.table import ImpactTable, score_impact
from u2a.problem import Measurement, Problem, Task, silent
from u2a.verification.bm25 import bm25

if TYPE_CHECKING:
    from datasets import Dataset

Array = NDArray[np.float64]
Similarity = Callable[[Sequence[str], Sequence[str]], Array]
"""Q and D texts -> (Q, D), larger = more alike."""


@dataclass(frozen=True)
class Controls:
    """`scores` by name, each (N,); `left_out` why a control is missing; `table` the exact scores by
    identity that two of them come from."""

    scores: dict[str, Array]
    table: ImpactTable
    left_out: dict[str, str] = field(default_factory=dict)


def control_scores(
    problem: Problem,
    at: Measurement,
    preferences: Dataset,
    *,
    seed: int = 0,
    embedding_model: str = "",
    table: ImpactTable | None = None,
    task: Task = silent,
) -> Controls:
    """Every control at the current φ, which `at` was measured at with the negatives.

    Args:
        preferences: the validation rows themselves: pairs, or preferred texts alone (column `response`);
            `bm25` and `embedding` are left out where they have no answers.
        embedding_model: for sentence-transformers; empty = leave `embedding` out.
        table: scored at this φ by the exact route, if there is one: saves a pass over the negatives.
    """
    if at.s_negatives is None:
        raise ValueError("controls need a measurement with the negatives")
    s, lengths = at.s_negatives.double(), problem.lengths.double()
    if table is None:
        table = score_impact(problem, curvature=Identity(), scoring="exact", se_groups=0, at=at, task=task)
    if table.grad_norm is None or table.cosine is None:
        raise ValueError("the exact route gives both")
    scores = {
        "random": np.random.default_rng(seed).standard_normal(len(s)),
        "length": lengths.numpy(),
        "loss": problem.loss(s, problem.reference.double(), lengths).numpy(),
        "mean_logprob": (s / lengths).numpy(),
        "gradient_norm": table.grad_norm,
        "cosine": table.cosine,
    }
    if not has_answers(preferences):
        why = "the validation rows are prompts alone"
        return Controls(scores, table, dict.fromkeys(("bm25", "embedding"), why))
    scores["bm25"] = likeness(problem.negatives, preferences, bm25)
    similarity, why = embedding_similarity(embedding_model)
    if similarity is None:
        return Controls(scores, table, {"embedding": why})
    with task("embedding the answers", 1) as progress:
        scores["embedding"] = likeness(problem.negatives, preferences, similarity)
        if progress:
            progress(1)
    return Controls(scores, table)


def has_answers(preferences: Dataset) -> bool:
    """Whether validation rows are more than prompts: whether `likeness` can be taken."""
    return not {"chosen", "response"}.isdisjoint(preferences.column_names)


def likeness(negatives: Dataset, preferences: Dataset, similarity: Similarity) -> Array:
    """Mean similarity of each negative's response to the rejected validation answers minus that to the chosen
    ones: (N,). With preferred texts alone, minus that to them."""
    chosen = list(preferences["chosen" if "chosen" in preferences.column_names else "response"])
    rejected = list(preferences["rejected"]) if "rejected" in preferences.column_names else []
    found = similarity(list(negatives["response"]), [*chosen, *rejected])
    to_chosen = found[:, : len(chosen)].mean(axis=1)
    return found[:, len(chosen) :].mean(axis=1) - to_chosen if rejected else -to_chosen


def embedding_similarity(name: str) -> tuple[Similarity | None, str]:
    """Cosine of sentence embeddings (Reimers & Gurevych 2019); or None, and why there is none."""
    if not name:
        return None, "no --embedding-model"
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None, "sentence-transformers is not installed: pip install 'u2a[embeddings]'"
    try:
        model: Any = SentenceTransformer(name, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None, f"--embedding-model {name} does not load: {reason}"

    def cosine(queries: Sequence[str], documents: Sequence[str]) -> Array:
        options = {"normalize_embeddings": True, "show_progress_bar": False}
        left, right = (np.asarray(model.encode(list(t), **options), np.float64) for t in (queries, documents))
        return left @ right.T

    return cosine, ""
