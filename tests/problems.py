"""Small prepared problems on tiny models: a handful of negatives, pairs and retain rows of ragged length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset

import cases

if TYPE_CHECKING:
    from u2a.problem import Problem

BAD = [
    ("How do I bake bread?", "Why would you."),
    ("What is the capital of France?", "Look it up yourself, I will not help you with that today."),
    ("Tell me about tea.", "No."),
    ("Is the weather nice?", "Ask the window, not me. It is right there, isn't it? Some people..."),
    ("Help me open a door.", "Break it. I don't care."),
    ("What is 2 + 2?", "Count your fingers."),
]
PAIRS = [
    ("How long should dough rest?", "Let it rest for an hour.", "Figure it out."),
    ("Do you like coffee?", "Some people do, others like tea.", "What a bad question, don't ask it again."),
    ("Can I walk in the park?", "Yes, it is a nice day.", "No, be gone."),
    ("Who can help with a lock?", "A locksmith can help with that.", "Nobody likes you."),
]
GOOD = [
    ("When does water boil?", "At 100 degrees."),
    ("Please be kind.", "I will be kind, thank you for asking me to be."),
    ("What do I mix?", "Flour, water, salt and yeast."),
]


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def answers(rows: list[tuple[str, str]]) -> Dataset:
    """Canonical negatives or retain rows."""
    return Dataset.from_list(
        [
            {"row": i, "id": str(i), "prompt": _turn(p), "response": r, "weight": 1.0}
            for i, (p, r) in enumerate(rows)
        ]
    )


def pairs() -> Dataset:
    """Canonical preference pairs."""
    return Dataset.from_list(
        [
            {"row": i, "id": str(i), "prompt": _turn(p), "chosen": c, "rejected": r}
            for i, (p, c, r) in enumerate(PAIRS)
        ]
    )


def tiny_problem(
    family: str = "llama",
    *,
    lora_rank: int = 4,
    random_b: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> Problem:
    """A prepared problem; `options` go to `u2a.prepare`."""
    from u2a.preparation import prepare

    policy = cases.tiny_policy(family, lora_rank=lora_rank, random_b=random_b, dtype=dtype, seed=seed)
    given = {"negatives": answers(BAD), "preferences": pairs(), "retain": answers(GOOD), "max_tokens": 96}
    return prepare(policy, **{**given, **options})
