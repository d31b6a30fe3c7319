"""How long a text may be for a model: by the positions it has, with room left for what it generates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from u2a.config import DataOptions
from u2a.data.render import left_cut
from u2a.logprobs import unwrapped
from u2a.types import UserError

log = logging.getLogger("u2a")

USUAL_LENGTH = DataOptions.max_length
"""The default of `--max-length`, but for `u2a chat`."""

_TABLES = ("wpe", "embed_positions", "position_embeddings", "positions_embed", "pos_encoding")
"""What transformers' models call their tables of positions."""
_SPARE = 2
"""Rows that some tables have beyond the positions."""


def usable_length(model: Any, max_length: int, usual: int = USUAL_LENGTH) -> int:
    """`max_length`, or as many tokens as the model has positions where that is only the default.

    Rotary positions go on beyond what the model was made for, and worse: there is a warning.

    Args:
        usual: the default of `max_length`.

    Raises:
        UserError: the model has a table of positions, and it ends before another `max_length`.
    """
    most = _configured(model)
    if most is None or max_length <= most:
        return max_length
    ends = table_of_positions(model)
    if ends is None:
        log.warning(
            "--max-length %d is beyond the %d positions of the model's configuration: what stands there it "
            "reads worse",
            *(max_length, most),
        )
        return max_length
    if max_length != usual:
        raise UserError(f"--max-length {max_length}: the model has {ends} positions; take at most {ends}")
    log.warning("--max-length is %d and not %d: the model has no more positions", ends, max_length)
    return ends


def with_room(model: Any, prompts: Sequence[list[int]], new_tokens: int, bos: int | None) -> list[list[int]]:
    """Prompts cut on their left so far that `new_tokens` more have positions too; a BOS token stays.

    Raises:
        UserError: they leave no position for a prompt.
    """
    ends = table_of_positions(model)
    if ends is None:
        return list(prompts)
    if ends - new_tokens < 1:
        raise UserError(f"{new_tokens} new tokens leave no room for a prompt: the model has {ends} positions")
    return [left_cut(prompt, ends - new_tokens, bos) for prompt in prompts]


def table_of_positions(model: Any) -> int | None:
    """Tokens after which the model's table of positions ends; None where it has none (rotary, ALiBi, …)."""
    most = _configured(model)
    if most is None:
        return None
    for name, table in [*model.named_parameters(), *model.named_buffers()]:
        layer, _, last = name.rpartition(".")
        if not {layer.rpartition(".")[2], last} & set(_TABLES) or not 0 <= len(table) - most <= _SPARE:
            continue
        # RoBERTa counts from behind the padding token's position.
        padding = getattr(model.get_submodule(layer), "padding_idx", None)
        return most if padding is None else len(table) - padding - 1
    return None


def _configured(model: Any) -> int | None:
    config: Any = unwrapped(model).config.get_text_config()
    return getattr(config, "max_position_embeddings", None)
