"""Coherence: does the answer have to do with the question?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from u2a.config import option
from u2a.evaluation.figure import Figure
from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Subject


@dataclass(frozen=True)
class Coherence:
    """`coherence`: cosine of the sentence embeddings of the prompt's last turn and of the answer to it
    (Reimers & Gurevych 2019, arXiv 1908.10084), mean over the held-out prompts, ↑; −1 to 1. An empty answer
    counts 0."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("prompts",),)
    asks: ClassVar[tuple[str, ...]] = ("coherence_model",)

    coherence_model: str = option(
        "", "coherence: a sentence-transformers model (extra `embeddings`); empty = leave it out."
    )

    def check(self) -> None:
        """Loads the embedding model, which is small, so that a bad name is found before any other is loaded.

        Raises:
            UserError: sentence-transformers is not installed, or the model does not load.
        """
        _loaded(self.coherence_model)

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """A value a prompt."""
        if material.prompts is None or not self.coherence_model:
            return []
        answers = [answer.text for answer in subject.answers("prompts", material.prompts)]
        questions = [prompt[-1]["content"] if prompt else "" for prompt in material.prompts]
        model = _loaded(self.coherence_model)
        options = {"normalize_embeddings": True, "show_progress_bar": False}
        left, right = (np.asarray(model.encode(t, **options), np.float64) for t in (questions, answers))
        values = np.where([bool(a) for a in answers], (left * right).sum(1), 0.0)
        return [Figure("coherence", values, "higher", "cosine")]


@lru_cache(maxsize=2)
def _loaded(name: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            "--coherence-model needs sentence-transformers: pip install 'u2a[embeddings]'"
        ) from None
    try:
        return SentenceTransformer(name, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--coherence-model {name} does not load: {reason}") from None
