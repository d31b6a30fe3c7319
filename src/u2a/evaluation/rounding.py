"""Rounding: does unlearning outlive weights of few bits, in which models are served?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from u2a.config import option
from u2a.evaluation.figure import Array, Figure, perplexity_of
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Subject

WIDTHS = ("8", "4")
"""Bits as the option has them."""


@dataclass(frozen=True)
class Rounding:
    """With weights rounded to 8 and to 4 bits (Zhang et al. 2024, arXiv 2410.16454: changes of less than a
    step are undone): `negative_logprob_8bit`, mean log-prob of the negatives in nats per token, ↓;
    `margin_8bit`, mean margin of the held-out pairs in nats, ↑; `perplexity_retain_8bit`, per token of the
    retain texts, ↓; `negative_logprob_4bit`, `margin_4bit` and `perplexity_retain_4bit` likewise. To nearest,
    symmetric: one scale an output channel at 8 bits, one for 64 weights along the input at 4. All linear
    layers but the embeddings and the output head; experts fused into one tensor stay as they are."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("negatives", "test", "retain"),)
    asks: ClassVar[tuple[str, ...]] = ("round_bits",)

    round_bits: str = option("", "rounding: bits of the weights, 8, 4 or 8,4; empty = leave it out.")

    @property
    def widths(self) -> list[int]:
        """The bits, each once.

        Raises:
            UserError: there is no such rounding here, or none is named.
        """
        named = list(dict.fromkeys(word.strip() for word in self.round_bits.split(",") if word.strip()))
        strange = [word for word in named if word not in WIDTHS]
        if strange or not named:
            found = ", ".join(strange) or self.round_bits
            raise UserError(f"--round-bits {found}: take some of {', '.join(WIDTHS)}")
        return [int(word) for word in named]

    def check(self) -> None:
        """Reads the option before any model is loaded.

        Raises:
            UserError: it does not hold bits.
        """
        self.widths  # noqa: B018 - for its errors

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """For each number of bits, those of the three whose texts are there; the weights are the same after
        it as before.

        Raises:
            GuardStop: a log-prob is not finite.
            UserError: the model carries an adapter.
        """
        from u2a.evaluation.rounded_weights import rounded

        roles = {
            role: texts
            for role in ("negatives", "test", "retain")
            if (texts := getattr(material, role)) is not None
        }
        if not roles or not self.round_bits:
            return []
        found = []
        for bits in self.widths:
            with rounded(subject.whole_model("rounding"), bits):
                for role, texts in roles.items():
                    s = subject.logprobs_now(f"log-probs, {role}, {bits} bits", texts)
                    found.append(_figure(role, texts, bits, s))
        return found


def _figure(role: str, texts: Dataset, bits: int, s: Array) -> Figure:
    """The figure of one role from its log-probs (N,)."""
    if role == "test":
        chosen, rejected = np.split(s, 2)
        return Figure(f"margin_{bits}bit", chosen - rejected, "higher", "nats")
    lengths = np.asarray(texts["n_tokens"], float)
    if role == "negatives":
        return Figure(f"negative_logprob_{bits}bit", s / lengths, "lower", "nats per token")
    values = np.stack([-s, lengths], 1)
    return Figure(f"perplexity_retain_{bits}bit", values, "lower", "per token", perplexity_of)
