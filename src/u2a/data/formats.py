"""Raw rows to canonical rows: which columns mean what, in every format that is accepted.

A format is recognised row by row from its columns, so a folder may mix formats. A prompt is a list of
messages `{"role", "content"}`; a plain string prompt is one user turn, an empty one no turn. Keys of a
message other than its role and content are dropped. Alpaca's `input` follows its `instruction` after a
newline, as in LLaMA-Factory; Alpaca's `history` is not read. KTO's label is `label`, LLaMA-Factory's
`kto_tag` or BeaverTails' `is_safe`. Conversations written as text are read as such (`written_messages`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from u2a.data.csv_rows import FLAG_WORDS
from u2a.data.reading import type_name
from u2a.data.written_messages import with_messages
from u2a.types import Message, UserError, shown

Values = Mapping[str, Any]

ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")} | {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
}
"""Accepted role names; the second half are ShareGPT's."""
TEXT_KEYS = frozenset({"prompt", "system", "completion", "response", "chosen", "rejected", "text"}) | {
    *("messages", "conversations", "instruction", "input", "output", "response_0", "response_1")
}
"""Columns that carry text for some format: never part of `extra`, whether or not this row used them."""
ANSWER_KEYS = ("completion", "response", "output")
ANSWER_NAMES = {"response": "answer", "chosen": "chosen answer", "rejected": "rejected answer"}
"""What messages call the answers of canonical rows: the user's file may have other names for them."""
CONVERSATION_KEYS = ("messages", "conversations")
LABEL_KEYS = ("label", "kto_tag", "is_safe")
READ_KEYS = TEXT_KEYS | {*LABEL_KEYS, "id", "weight"}
"""Columns that mean something in a file of one answer or one pair a row."""

_ONE_ANSWER = "`prompt` + `completion` (with or without `label`), `prompt` + `response`, `messages`, \
`conversations`, `instruction` + `output`"
ACCEPTED = {
    "negatives": f"{_ONE_ANSWER}, `prompt` + `rejected`, PKU-SafeRLHF's `response_0`..., `text`",
    "retain": f"{_ONE_ANSWER}, `prompt` + `chosen`, PKU-SafeRLHF's `response_0`..., `text`",
    "preferences": "`prompt` + `chosen` + `rejected`, `chosen` + `rejected` as lists of messages with the "
    "conversation before, PKU-SafeRLHF's columns with `safer_response_id`",
    "prompts": "`prompt`, `instruction`, `messages`, `conversations`, `chosen` as a list of messages, `text`",
}


def negatives_of(values: Values, where: str) -> list[dict[str, Any]]:
    """The bad answers of one row: `prompt`, `response`, `weight`; none when the row is labelled good.

    PKU-SafeRLHF rows give every response whose `is_response_k_safe` is false; a `rejected` goes before a
    `completion`. Raises `UserError` naming `where` and the column.
    """
    values, weight = with_messages(values, where), _weight(values, where)
    return [{**row, "weight": weight} for row in _answers(values, where, "negatives", "rejected", False)]


def retain_of(values: Values, where: str) -> list[dict[str, Any]]:
    """The good answers of one row: `prompt`, `response`; none when the row is labelled bad.

    PKU-SafeRLHF rows give every response whose `is_response_k_safe` is true. Raises `UserError`.
    """
    return _answers(with_messages(values, where), where, "retain", "chosen", True)


def preferences_of(values: Values, where: str) -> list[dict[str, Any]]:
    """The one pair of a row: `prompt`, `chosen`, `rejected`. Raises `UserError`."""
    values = with_messages(values, where)
    if _is_pku(values):
        safer = values.get("safer_response_id")
        if isinstance(safer, (bool, float)) or safer not in (0, 1):
            raise UserError(f"{where}: `safer_response_id` must be 0 or 1")
        chosen = _text(values.get(f"response_{safer}"), f"response_{safer}", where)
        rejected = _text(values.get(f"response_{1 - safer}"), f"response_{1 - safer}", where)
        prompt = _with_system(_prompt(values, where, "preferences"), values, where)
        return [{"prompt": prompt, "chosen": chosen, "rejected": rejected}]
    if "chosen" not in values or "rejected" not in values:
        raise missing(values, where, "preferences")
    prompt, chosen = _answer(values, "chosen", where, "preferences")
    other, rejected = _answer(values, "rejected", where, "preferences")
    if prompt != other:
        raise UserError(
            f"{where}: `chosen` and `rejected` do not answer the same conversation; "
            "they may differ in their last assistant turn only"
        )
    return [{"prompt": prompt, "chosen": chosen, "rejected": rejected}]


def prompts_of(values: Values, where: str) -> list[dict[str, Any]]:
    """The prompt of a row alone; the final assistant turn of a whole conversation is left out.

    Raises `UserError`, also when the prompt is empty.
    """
    values = with_messages(values, where)
    prompt = _optional_prompt(values, where)
    if prompt is None:
        whole = [key for key in (*CONVERSATION_KEYS, "chosen", "rejected") if key in values]
        if whole and isinstance(values[whole[0]], list):
            prompt = _messages(values[whole[0]], whole[0], where)
            if prompt[-1]["role"] == "assistant":
                prompt = prompt[:-1]
        elif "text" in values:
            prompt = _turns(_text(values["text"], "text", where))
        else:
            raise missing(values, where, "prompts")
    prompt = _with_system(prompt, values, where)
    if not prompt:
        raise UserError(f"{where}: the prompt is empty")
    return [{"prompt": prompt}]


def has_label(values: Values) -> bool | None:
    """Whether a one-answer row carries a KTO label; None where a label means nothing (pairs, PKU rows)."""
    if _is_pku(values) or "chosen" in values or "rejected" in values:
        return None
    return any(key in values for key in LABEL_KEYS)


def extra_of(values: Values, used: frozenset[str], where: str) -> str:
    """The other columns of a row as one json object with sorted keys (`{}` when there are none)."""
    rest = {key: value for key, value in values.items() if key not in TEXT_KEYS and key not in used}
    try:
        return json.dumps(rest, sort_keys=True, default=str)
    except RecursionError as fault:
        raise UserError(f"{where}: a column is nested too deeply to be kept; remove it") from fault
    except ValueError as fault:  # a whole number of more than 4,300 digits
        raise UserError(f"{where}: a column holds a number too long to be kept; remove it") from fault


def _answers(values: Values, where: str, role: str, pair_key: str, wanted: bool) -> list[dict[str, Any]]:
    """Rows `prompt`, `response` of the answers whose label is `wanted` (True = good)."""
    if _is_pku(values):
        prompt = _with_system(_prompt(values, where, role), values, where)
        return [
            {"prompt": prompt, "response": _text(values.get(f"response_{k}"), f"response_{k}", where)}
            for k in (0, 1)
            if _flag(values.get(f"is_response_{k}_safe"), f"is_response_{k}_safe", where) is wanted
        ]
    if pair_key in values:
        prompt, response = _answer(values, pair_key, where, role)
        return [{"prompt": prompt, "response": response}]
    label = next((_flag(values[key], key, where) for key in LABEL_KEYS if key in values), wanted)
    # a good row of a KTO file is checked too: a broken row is an error in whichever role the file is read
    row = _one_answer(values, where, role)
    return [row] if label is wanted else []


def _one_answer(values: Values, where: str, role: str) -> dict[str, Any]:
    for key in ANSWER_KEYS:
        if key in values:
            prompt, response = _answer(values, key, where, role)
            return {"prompt": prompt, "response": response}
    for key in CONVERSATION_KEYS:
        if key in values:
            turns = _ending_with_assistant(_messages(values[key], key, where), key, where)
            prompt = _with_system(turns[:-1], values, where)
            return {"prompt": prompt, "response": turns[-1]["content"]}
    if "text" in values and "prompt" not in values and "instruction" not in values:
        prompt = _with_system([], values, where)
        return {"prompt": prompt, "response": _text(values["text"], "text", where)}
    raise missing(values, where, role)


def _is_pku(values: Values) -> bool:
    return "response_0" in values and "response_1" in values and "prompt" in values


def _answer(values: Values, key: str, where: str, role: str) -> tuple[list[Message], str]:
    """Prompt and answer of the column `key`: a text, a message, or messages that end with the answer.

    Messages before the answer are the conversation: they stand for the prompt where they repeat it, end with
    it or begin with it, behind a system turn perhaps (or there is none), and follow it otherwise.
    """
    value = values[key]
    if isinstance(value, str):
        return _with_system(_prompt(values, where, role), values, where), _text(value, key, where)
    if not isinstance(value, (list, dict)):
        raise UserError(f"{where}: `{key}` must be text or messages, it is {type_name(value)}")
    turns = _messages([value] if isinstance(value, dict) else value, key, where)
    *before, last = _ending_with_assistant(turns, key, where)
    prompt = _optional_prompt(values, where)
    if not before:
        prompt = _prompt(values, where, role)
    elif not prompt or before[-len(prompt) :] == prompt or _begins_with(before, prompt):
        prompt = before
    elif prompt[-len(before) :] != before:
        if prompt[-1]["role"] == "user" and before[0]["role"] in ("system", "user"):
            raise UserError(
                f"{where}: `prompt` and the turns before the answer in `{key}` are two conversations; "
                "neither goes on where the other ends"
            )
        prompt = prompt + before
    return _with_system(prompt, values, where), last["content"]


def _begins_with(turns: list[Message], prompt: list[Message]) -> bool:
    """Whether a conversation opens with the prompt, a system turn that the prompt lacks aside."""
    opening = turns[1:] if turns[0]["role"] == "system" and prompt[0]["role"] != "system" else turns
    return opening[: len(prompt)] == prompt


def _prompt(values: Values, where: str, role: str) -> list[Message]:
    prompt = _optional_prompt(values, where)
    if prompt is None:
        raise missing(values, where, role)
    return prompt


def _optional_prompt(values: Values, where: str) -> list[Message] | None:
    """The prompt columns' conversation, None when there are none. `system` is not yet in it."""
    if "prompt" in values:
        prompt = values["prompt"]
        if isinstance(prompt, str):
            return _turns(_text(prompt, "prompt", where))
        if isinstance(prompt, list):
            return _messages(prompt, "prompt", where) if prompt else []
        raise UserError(f"{where}: `prompt` must be text or a list of messages, it is {type_name(prompt)}")
    if "instruction" in values:
        parts = [_text(values[key], key, where) for key in ("instruction", "input") if key in values]
        return _turns("\n".join(part for part in parts if part))
    for key in CONVERSATION_KEYS:
        if key in values and ("chosen" in values or "rejected" in values):
            turns = _messages(values[key], key, where)
            return turns if turns[-1]["role"] != "assistant" else None
    return None


def _turns(text: str) -> list[Message]:
    return [{"role": "user", "content": text}] if text else []


def _with_system(prompt: list[Message], values: Values, where: str) -> list[Message]:
    """`prompt` behind the turn of the `system` column, if there is one."""
    system = _text(values.get("system", ""), "system", where)
    if not system:
        return prompt
    if not prompt or prompt[0]["role"] != "system":
        return [{"role": "system", "content": system}, *prompt]
    if prompt[0]["content"] != system:
        raise UserError(f"{where}: the `system` column and the conversation's own system turn differ")
    return prompt


def _messages(value: Any, key: str, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else type_name(value)
        raise UserError(f"{where}: `{key}` must be a list of messages, it is {found}")
    return [_message(turn, f"{where}: `{key}`, turn {number}") for number, turn in enumerate(value, start=1)]


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise UserError(f"{place} must be an object with `role` and `content`, it is {type_name(turn)}")
    role = turn["role"] if turn.get("role") is not None else turn.get("from")
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    if role is None:
        raise UserError(f"{place} has no `role` (or `from`)")
    if not isinstance(role, str) or role not in ROLES:
        shown = ascii(role[:20]) if isinstance(role, str) else type_name(role)
        raise UserError(f"{place} has the unknown role {shown}; known are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"{place}: `content` must be text, it is {type_name(content)}")
    return {"role": ROLES[role], "content": _text(content, "content", place)}


def _ending_with_assistant(turns: list[Message], key: str, where: str) -> list[Message]:
    if turns[-1]["role"] != "assistant":
        raise UserError(f"{where}: `{key}` must end with an assistant turn, it ends with {turns[-1]['role']}")
    return turns


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: `{key}` must be text, it is {type_name(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as fault:
        raise UserError(
            f"{where}: `{key}` holds half a surrogate pair at character {fault.start + 1}, which is no text; "
            "replace it"
        ) from fault
    return value


def _flag(value: Any, key: str, where: str) -> bool:
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and (known := FLAG_WORDS.get(value.strip().lower())) is not None:
        return known
    found = type_name(value)
    if isinstance(value, (str, int, float)):
        found += f", {ascii(value[:20]) if isinstance(value, str) else shown(value)}"
    raise UserError(f"{where}: `{key}` must be true or false, it is {found}")


def _weight(values: Values, where: str) -> float:
    value = values.get("weight", 1.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: `weight` must be a number, it is {type_name(value)}")
    if value < 0:
        raise UserError(f"{where}: `weight` is negative; it must be 0 or more")
    try:
        finite = math.isfinite(weight := float(value))
    except OverflowError:
        finite = False
    if not finite:
        raise UserError(f"{where}: `weight` is not finite")
    return weight


class MissingColumnsError(UserError):
    """A row has not the columns of any format."""


def missing(values: Values, where: str, role: str, nulls: Sequence[str] = ()) -> MissingColumnsError:
    """The error for a row without the columns of `role`; `nulls`: columns of texts that it has, but null."""
    found = _listed(list(values)) or "nothing"
    lacks = f"no columns for {role}"
    if nulls:
        lacks = f"{_listed(nulls)} {'is' if len(nulls) == 1 else 'are'} null, fill in or remove the row"
    return MissingColumnsError(f"{where}: {lacks}; found {found}; accepted are {ACCEPTED[role]}")


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(f"`{ascii(key[:40])[1:-1]}`" for key in keys[:12]) + (", ..." if len(keys) > 12 else "")
