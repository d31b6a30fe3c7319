"""What an evaluation is made on: tokenised texts and prompts, by role; None = the user gave none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.data.render import Renderer
    from u2a.types import Message

Prompts = Mapping[str, list[list["Message"]]]
"""Conversations to answer, by role of the material."""


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

    prompts: Prompts
    models: int
    answer_tokens: int


def prompts_of(
    rows: Mapping[str, Dataset], most: int, seed: int, say: Callable[[str], None]
) -> dict[str, list[list[Message]]]:
    """At most `most` prompts (0 = all) of each kind that is answered, in their order; those of pairs once.

    Where there are more they are drawn by `seed`: files are often sorted, and their first rows of one kind.

    Args:
        rows: canonical rows by flag: `test`, `safe_prompts`, `unsafe_prompts`.
        say: hears how many of how many are drawn.
    """
    given = {role: list(rows[role]["prompt"]) for role in ("safe_prompts", "unsafe_prompts") if role in rows}
    if "test" in rows:
        given["prompts"] = different_prompts(rows["test"]["prompt"])
    found = {}
    for role, prompts in given.items():
        found[role] = drawn_prompts(prompts, most, seed)
        if len(found[role]) < len(prompts):
            say(f"{role.replace('_', ' ')}: {most} of {len(prompts)} are answered, drawn by the seed")
    return found


def drawn_prompts(prompts: list[list[Message]], most: int, seed: int) -> list[list[Message]]:
    """At most `most` of them (0 = all), drawn by the seed, in their order."""
    if not 0 < most < len(prompts):
        return prompts
    drawn = np.random.default_rng(seed).choice(len(prompts), most, replace=False)
    return [prompts[place] for place in sorted(drawn)]


def different_prompts(prompts: Sequence[list[Message]]) -> list[list[Message]]:
    """Each prompt once."""
    found: dict[str, list[Message]] = {}
    for prompt in prompts:
        found.setdefault(json.dumps(prompt), prompt)
    return list(found.values())


def material_of(rows: Mapping[str, Dataset], prompts: Prompts, renderer: Renderer) -> Material:
    """Canonical rows, by flag, as one model's tokens."""
    from u2a.data.collate import token_counts, tokenize_rows
    from u2a.validation import pair_texts

    texts = {
        role: tokenize_rows(rows[name], renderer, role=name.replace("_", " "))
        for role, name in (
            ("negatives", "negatives"),
            ("held_out_negatives", "held_out_negatives"),
            ("retain", "retain"),
            ("plain", "text"),
        )
        if name in rows
    }

    def scored_answers(role: str) -> list[str] | None:
        """Answers as far as they are scored: of one that may have been cut, the text of its tokens."""
        if role not in rows:
            return None
        found = list(rows[role]["response"])
        for place in np.flatnonzero(token_counts(texts[role]) >= renderer.max_length).tolist():
            text = texts[role][place]
            answer = text["input_ids"][text["response_start"] :]
            found[place] = renderer.tokenizer.decode(answer, skip_special_tokens=True).strip()
        return found

    test = rows.get("test")
    return Material(
        test=pair_texts(test, renderer, role="test")[0] if test is not None else None,
        negative_answers=scored_answers("negatives"),
        held_out_answers=scored_answers("held_out_negatives"),
        **prompts,
        **texts,
    )
