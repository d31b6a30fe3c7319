"""What an evaluation is made on: tokenised texts and prompts, by role; None = the user gave none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.types import Message


@dataclass(frozen=True)
class Material:
    """Texts as `tokenize_rows` makes them, the same for every model, and what metrics need beside them.

    `test`: held-out pairs as 2P texts, the chosen ones first. `negatives`: the bad answers that were
    unlearned; `held_out_negatives`: bad answers like them that were not, for membership inference. `retain`:
    texts to keep. `plain`: pieces of a plain text file. `prompts`: conversations to answer, those of the
    held-out pairs. `safe_prompts`, `unsafe_prompts`: to be answered, and to be refused.
    `negative_answers` and `held_out_answers`: the responses of both kinds of negatives as text.
    """

    test: Dataset | None = None
    negatives: Dataset | None = None
    held_out_negatives: Dataset | None = None
    retain: Dataset | None = None
    plain: Dataset | None = None
    prompts: list[list[Message]] | None = None
    safe_prompts: list[list[Message]] | None = None
    unsafe_prompts: list[list[Message]] | None = None
    negative_answers: list[str] | None = None
    held_out_answers: list[str] | None = None


@dataclass(frozen=True)
class Plan:
    """What is known before there is any answer: `prompts` to be answered by role of the material, `models`
    under evaluation, the original among them, and the most `answer_tokens` of an answer."""

    prompts: Mapping[str, list[list[Message]]]
    models: int
    answer_tokens: int
