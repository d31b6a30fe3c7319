"""Packing: texts with the same prompt share one copy of it, and rows carry several texts without padding.

A preference pair has one prompt and two answers, and logs hold many answers to one prompt; so a good part of
all tokens would be computed again and again. A token sees its own text and the prompt that the text shares,
nothing else, so log-probs are those of the texts one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from u2a.data.collate import token_counts
from u2a.types import PackedBatch

if TYPE_CHECKING:
    from datasets import Dataset

ROW_TOKENS = 256
"""Least capacity of a row: short rows keep the (T, T) attention cheap beside the layers."""

_OPEN_ROWS = 16
"""Rows that are kept open while texts are dealt out."""


@dataclass(frozen=True)
class Plan:
    """How N texts are packed. `groups` are positions of texts that share the first `shared` tokens of each.

    `tokens` counts the tokens of all rows with their padding, `plain` those of length-sorted batches without
    sharing: what the pass would cost otherwise. `longest` is the length of the longest text.
    """

    batches: list[list[list[Group]]]
    tokens: int
    plain: int
    longest: int

    @property
    def sharing(self) -> list[Group]:
        """Groups of at least two texts with something in common, smallest first."""
        groups = (group for batch in self.batches for row in batch for group in row)
        common = (group for group in groups if len(group.texts) > 1 and group.shared > 0)
        return sorted(common, key=lambda group: group.size)

    @property
    def widest(self) -> list[Group]:
        """The groups of the widest row."""
        return self.batches[0][0]

    @property
    def largest(self) -> list[Group]:
        """The group of the most tokens, alone."""
        return [
            max((group for batch in self.batches for row in batch for group in row), key=lambda g: g.size)
        ]


@dataclass(frozen=True)
class Group:
    """Texts with the same first `shared` tokens, in one row; `size` tokens in all."""

    texts: tuple[int, ...]
    shared: int
    size: int


@dataclass
class _Row:
    room: int
    groups: list[Group] = field(default_factory=list)


def plan(texts: Dataset, max_tokens: int) -> Plan:
    """Packs tokenised texts into rows, rows into batches of at most `max_tokens` (but at least one row)."""
    lengths = token_counts(texts)
    starts = np.asarray(texts["response_start"], np.int64)
    groups = _groups(texts, lengths, starts, max_tokens)
    capacity = max(ROW_TOKENS, max((group.size for group in groups), default=0))
    rows = _rows(groups, capacity)
    rows.sort(key=lambda row: row.room)
    batches: list[list[list[Group]]] = []
    tokens, begin = 0, 0
    while begin < len(rows):
        width = capacity - rows[begin].room
        size = max(1, max_tokens // width)
        batches.append([row.groups for row in rows[begin : begin + size]])
        tokens += width * len(batches[-1])
        begin += size
    return Plan(batches, tokens, int(lengths.sum()), int(lengths.max(initial=0)))


def packed_batches(texts: Dataset, plan: Plan, *, pad_token_id: int) -> Iterator[PackedBatch]:
    """The batches of a plan, widest rows first; every text once."""
    columns = texts.select_columns(["input_ids"]).with_format("numpy")
    starts = texts["response_start"]
    for batch in plan.batches:
        index = [i for row in batch for group in row for i in group.texts]
        ids = dict(zip(index, columns[index]["input_ids"], strict=True))
        yield _batch(batch, ids, {i: int(starts[i]) for i in index}, pad_token_id)


def _groups(texts: Dataset, lengths: np.ndarray, starts: np.ndarray, max_tokens: int) -> list[Group]:
    """Texts by their prompt without its last token, which has to predict for each of them; largest first."""
    members: dict[bytes, list[int]] = {}
    position = 0
    for block in texts.select_columns(["input_ids"]).with_format("numpy").iter(batch_size=1000):
        for ids in block["input_ids"]:
            prompt = np.ascontiguousarray(ids[: max(starts[position] - 1, 0)], np.int64).tobytes()
            members.setdefault(hashlib.blake2b(prompt, digest_size=16).digest(), []).append(position)
            position += 1
    groups = []
    for positions in members.values():
        shared = max(int(starts[positions[0]]) - 1, 0)
        taken: list[int] = []
        size = shared
        for i in sorted(positions, key=lambda i: -lengths[i]):
            own = int(lengths[i]) - shared
            if taken and size + own > max(ROW_TOKENS, max_tokens // 4):  # one prompt, very many answers
                groups.append(Group(tuple(taken), shared, size))
                taken, size = [], shared
            taken.append(i)
            size += own
        groups.append(Group(tuple(taken), shared, size))
    return sorted(groups, key=lambda group: -group.size)


def _rows(groups: list[Group], capacity: int) -> list[_Row]:
    """Deals groups, largest first, each to the fullest open row with room for it."""
    done: list[_Row] = []
    open_rows: list[_Row] = []
    for group in groups:
        fitting = [row for row in open_rows if row.room >= group.size]
        if fitting:
            row = min(fitting, key=lambda row: row.room)
        else:
            row = _Row(capacity)
            open_rows.append(row)
        row.groups.append(group)
        row.room -= group.size
        if len(open_rows) > _OPEN_ROWS:
            fullest = min(open_rows, key=lambda row: row.room)
            open_rows.remove(fullest)
            done.append(fullest)
    return done + open_rows


def _batch(
    rows: list[list[Group]], ids: dict[int, Any], starts: dict[int, int], pad_token_id: int
) -> PackedBatch:
    width = max(sum(group.size for group in row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.int64)
    position_ids = torch.zeros_like(input_ids)
    # each token's piece of text, and the piece it may see besides its own; -1: padding, -2: none
    own, seen = torch.full_like(input_ids, -1), torch.full_like(input_ids, -2)
    index: list[int] = []
    found: dict[str, list[torch.Tensor]] = {"rows": [], "columns": [], "targets": [], "example": []}
    for r, row in enumerate(rows):
        place, piece = 0, 0
        for group in row:
            prompt = slice(place, place + group.shared)
            first = torch.as_tensor(ids[group.texts[0]][: group.shared], dtype=torch.int64)
            input_ids[r, prompt], position_ids[r, prompt] = first, torch.arange(group.shared)
            own[r, prompt], prompt_piece = piece, piece
            place, piece = place + group.shared, piece + 1
            for i in group.texts:
                rest = torch.as_tensor(ids[i][group.shared :], dtype=torch.int64)
                here = slice(place, place + len(rest))
                input_ids[r, here] = rest
                position_ids[r, here] = group.shared + torch.arange(len(rest))
                own[r, here], seen[r, here] = piece, prompt_piece
                responses = torch.arange(max(starts[i], 1) - group.shared, len(rest))
                found["rows"].append(torch.full_like(responses, r))
                found["columns"].append(place + responses - 1)
                found["targets"].append(rest[responses])
                found["example"].append(torch.full_like(responses, len(index)))
                index.append(i)
                place, piece = place + len(rest), piece + 1
    before = torch.ones(width, width, dtype=torch.bool).tril()
    sees = (own[:, :, None] == own[:, None, :]) | (seen[:, :, None] == own[:, None, :])
    return PackedBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        mask=(sees & before)[:, None],
        index=torch.as_tensor(index, dtype=torch.int64),
        **{name: torch.cat(parts) for name, parts in found.items()},
    )
