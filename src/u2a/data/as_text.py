"""A conversation as one string, as the impact table and pages for people have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def as_text(prompt: Sequence[Mapping[str, Any]]) -> str:
    """The bare content of a single user turn, else `role: content` lines."""
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
