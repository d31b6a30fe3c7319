"""Conversations that a file holds as text: serialised lists of messages, and Anthropic's transcripts.

`DataFrame.to_csv` writes a list of messages as Python does, some exports as json in a string; hh-rlhf's own
files hold `\\n\\nHuman: … \\n\\nAssistant: …`. Read as they stand, such texts would be scored and trained on
with their brackets and markers, chosen and rejected alike, and every figure would look plausible.
"""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from u2a.types import Message, UserError

log = logging.getLogger("u2a")

KEYS = ("prompt", "completion", "response", "output", "chosen", "rejected", "messages", "conversations")
"""Columns that hold messages in some format."""

_SERIALISED = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
_TRANSCRIPT = re.compile(r"\s*Human:")
_TURN = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):[ ]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def with_messages(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The row with each such text as the list of messages that it is; any other row as it stands.

    A prompt alone that is a transcript stays text, with a warning: beside a plain answer it may be meant raw,
    for `--template none`.

    Raises:
        UserError: a text begins as a list of messages and cannot be read as one; names `where` and column.
    """
    found: dict[str, Any] = {}
    transcripts = []
    for key in KEYS:
        text = values.get(key)
        if not isinstance(text, str):
            continue
        if _SERIALISED.match(text):
            found[key] = _read(text, key, where)
        elif _TRANSCRIPT.match(text) and "\n\nAssistant:" in text:
            transcripts.append(key)
    if transcripts == ["prompt"]:
        _say_raw()
    else:
        found |= {key: _turns(values[key]) for key in transcripts}
    return {**values, **found} if found else values


@cache
def _say_raw() -> None:
    log.warning(
        "prompts are transcripts (`Human:`, `Assistant:`) and stay one text, right for --template none; for "
        "a model with a chat template give them as lists of messages"
    )


def _read(text: str, key: str, where: str) -> list[Any]:
    """A list that json or Python wrote."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
            return value
    raise UserError(
        f"{where}: `{key}` is text that begins like a list of messages and is neither json nor a Python list "
        "(it may be cut, or a printed numpy array): write messages as json"
    )


def _turns(text: str) -> list[Message]:
    """`Human:` and `Assistant:` turns; an empty last one is where the answer goes, and left out."""
    _, *parts = _TURN.split(text)
    turns = [
        Message(role=_ROLES[speaker], content=said)
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip() else turns
