"""From rows to batches: tokenising a data set, response masks, padding, length-sorted batches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf

from u2a.data.formats import ANSWER_NAMES
from u2a.data.load import locate, source_of
from u2a.data.render import Renderer
from u2a.data.scratch import no_progress_bars
from u2a.types import IGNORE, Batch, UserError

__all__ = [
    "Renderer", "collate", "length_sorted_batches", "row_name", "token_counts", "token_rows",
    "tokenize_pairs", "tokenize_rows",
]  # fmt: skip

log = logging.getLogger("u2a")

_FEATURES = Features(
    {
        "row": Value("int64"),
        "input_ids": ListOf(Value("int32")),
        "response_start": Value("int32"),
        "n_tokens": Value("int32"),
        "prompt_cut": Value("bool"),
        "response_cut": Value("bool"),
    }
)


def tokenize_rows(
    dataset: Dataset, renderer: Renderer, *, response: str = "response", role: str = ""
) -> Dataset:
    """Tokenised rows in the order of `dataset`: `row`, `input_ids`, `response_start`, `n_tokens`.

    `n_tokens` counts response tokens with the end of turn. `row` is the column of that name, else the
    position. The result is cached where `datasets` caches `dataset`; the key covers the rows, the column
    taken, the tokenizer, the template and max_length. How many rows were cut is logged, once.

    Args:
        dataset: columns `prompt` (messages) and the one that `response` names; `id` and `row` if they exist.
        role: what warnings call the rows, beside the file that they were loaded from.

    Raises:
        UserError: a response has no tokens, or the chat template refuses a conversation; names file and row,
            or `id` and row where the rows were not loaded from a file.
    """
    tokenized = _tokenized(dataset, renderer, response)
    cuts = {"prompt": np.asarray(tokenized["prompt_cut"]), response: np.asarray(tokenized["response_cut"])}
    _tell_of_cuts(dataset, renderer, cuts, role)
    return tokenized.remove_columns(["prompt_cut", "response_cut"])


def tokenize_pairs(pairs: Dataset, renderer: Renderer, *, role: str = "") -> tuple[Dataset, Dataset]:
    """The chosen and the rejected answers of P pairs, as `tokenize_rows` gives them, each behind its prompt.

    A prompt that was cut before either answer is counted once in the warning.
    """
    chosen, rejected = (_tokenized(pairs, renderer, response) for response in ("chosen", "rejected"))
    cuts = {
        "prompt": np.asarray(chosen["prompt_cut"]) | np.asarray(rejected["prompt_cut"]),
        "chosen": np.asarray(chosen["response_cut"]),
        "rejected": np.asarray(rejected["response_cut"]),
    }
    _tell_of_cuts(pairs, renderer, cuts, role)
    chosen, rejected = (each.remove_columns(["prompt_cut", "response_cut"]) for each in (chosen, rejected))
    return chosen, rejected


def _tokenized(dataset: Dataset, renderer: Renderer, response: str) -> Dataset:
    """With the columns that say what was cut."""

    def tokenize(example: dict[str, Any], position: int) -> dict[str, Any]:
        row, answer = example.get("row", position), ANSWER_NAMES.get(response, response)
        try:
            if not example[response].strip():
                raise UserError(f"the {answer} has no tokens: remove the row")
            encoded = renderer._encode(example["prompt"], example[response])
            if encoded.response_start >= len(encoded.input_ids):
                raise UserError(f"the {answer} has no tokens that anything predicts: remove the row")
        except UserError as error:
            if "source_row" in example:
                place = "{}, row {}".format(*locate(dataset, example["source_row"]))
            else:
                place = f"row {row} (id {example.get('id', row)})"
            raise UserError(f"{place}: {error}") from error
        return {**encoded._asdict(), "row": row, "n_tokens": len(encoded.input_ids) - encoded.response_start}

    key = f"{dataset._fingerprint} {renderer.fingerprint} {response}"
    with no_progress_bars():
        return dataset.map(
            tokenize,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=_FEATURES,
            new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
        )


_told: set[tuple[str, str, str]] = set()
"""Of what was cut, by rows, tokenizer and answer: the same rows are tokenised again by what comes later."""


def _tell_of_cuts(dataset: Dataset, renderer: Renderer, cuts: Mapping[str, np.ndarray], role: str) -> None:
    """A line for each kind of text that was cut; `cuts` (N,) bool by column."""
    source = source_of(dataset)
    name = f"{role} ({source})" if role and source else role or source
    for column, cut in cuts.items():
        key = (dataset._fingerprint, renderer.fingerprint, column)
        if not cut.any() or key in _told:
            continue
        _told.add(key)
        log.warning(
            "%s%d of %d %ss were cut on the %s to --max-length %d",
            f"{name}: " if name else "",
            np.count_nonzero(cut),
            len(cut),
            *(
                ANSWER_NAMES.get(column, column),
                "left" if column == "prompt" else "right",
                renderer.max_length,
            ),
        )


def row_name(texts: Dataset, position: int) -> str:
    """What messages call a text: its row, and its id where `texts` have one that says more."""
    text = texts[position]
    row = text.get("row", position)
    known = text.get("id")
    return f"row {row}" if known is None or str(known) == str(row) else f"row {row} (id {known})"


def token_rows(rows: Sequence[int], prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> Dataset:
    """The same columns from N prompts and responses that are tokens already; `rows` are the column `row`.

    A response is what was generated: with the token that ended it, or without where none did.
    """
    columns = {
        "row": list(rows),
        "input_ids": [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)],
        "response_start": [len(prompt) for prompt in prompts],
        "n_tokens": [len(response) for response in responses],
    }
    return Dataset.from_dict(columns, features=Features({name: _FEATURES[name] for name in columns}))


def collate(
    rows: Sequence[Mapping[str, Any]], index: Sequence[int], *, pad_token_id: int, padding_side: str = "right"
) -> Batch:
    """Pads tokenised rows (`input_ids`, `response_start`) to the longest: shapes (B, T).

    Args:
        index: the position of each row in its data set, for `Batch.index`.
        pad_token_id: fills `input_ids`; the attention mask is 0 and the label `IGNORE` there.
        padding_side: `right` or `left`.
    """
    width = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORE)
    for b, row in enumerate(rows):
        ids = torch.as_tensor(row["input_ids"], dtype=torch.int64)
        first = 0 if padding_side == "right" else width - len(ids)
        response = first + int(row["response_start"])
        input_ids[b, first : first + len(ids)] = ids
        attention_mask[b, first : first + len(ids)] = 1
        labels[b, response : first + len(ids)] = ids[int(row["response_start"]) :]
    return Batch(input_ids, attention_mask, labels, torch.as_tensor(list(index), dtype=torch.int64))


def length_sorted_batches(
    tokenized: Dataset, *, max_tokens: int, pad_token_id: int, padding_side: str = "right"
) -> Iterator[Batch]:
    """Every row once, longest first, in batches of at most `max_tokens` padded tokens (but at least one row).

    Longest first, so that memory runs out at once or never. `Batch.index` is the position in `tokenized`.
    """
    columns = tokenized.select_columns(["input_ids", "response_start"]).with_format("numpy")
    lengths = token_counts(tokenized)
    order = np.argsort(-lengths, kind="stable")
    begin = 0
    while begin < len(order):
        size = max(1, max_tokens // int(lengths[order[begin]]))
        index = order[begin : begin + size].tolist()
        chosen = columns[index]
        rows = [
            {"input_ids": ids, "response_start": start}
            for ids, start in zip(chosen["input_ids"], chosen["response_start"], strict=True)
        ]
        yield collate(rows, index, pad_token_id=pad_token_id, padding_side=padding_side)
        begin += size


def token_counts(tokenized: Dataset) -> np.ndarray:
    """Tokens of each row (N,), without making Python objects of the tokens."""
    tables = tokenized.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=10_000)
    counts = [pc.list_value_length(table["input_ids"]).to_numpy() for table in tables]
    return np.concatenate([np.zeros(0, np.int64), *counts]).astype(np.int64)
