"""What a trainer goes through: rows as tokens, negatives of positive weight, shared out evenly."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler

from u2a.data.collate import token_counts, tokenize_rows
from u2a.data.load import FEATURES, load_negatives, load_retain
from u2a.data.sources import GIVEN
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.data.render import Renderer

log = logging.getLogger("u2a")


@dataclass
class Negatives(torch.utils.data.Dataset):
    """Tokenised negatives with weights ω (N,) ≥ 0, not all 0, and s_ref (N,): None until it is measured."""

    rows: Dataset
    weights: np.ndarray
    reference: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return {**self.rows[item], "index": item}


def prepared_negatives(given: Dataset | None, renderer: Renderer, name: str) -> Negatives:
    """What a user gave as negatives: rows of any format of `load_negatives`, or tokens.

    Args:
        name: what messages call them.

    Raises:
        UserError: there are none, a row is in no format, tokens are labelled good, tokenised rows do not say
            rightly where their responses are, or a weight is unusable.
    """
    _refuse_no_dataset(given, "negatives", name)
    if given is None or len(given) == 0:
        raise UserError(f"{name} is empty: there is nothing to unlearn")
    if "input_ids" in given.column_names:
        _refuse_good(given, name)
        _check_tokenised(given, name)
        rows = texts = given
    else:
        rows = _loaded(given, "negatives", name)
        texts = _tokenized(rows, renderer, name)
    columns = rows.column_names
    weights = checked_weights(
        np.asarray(rows["weight"] if "weight" in columns else [], float), len(rows), name
    )
    return Negatives(_with_ids(texts, rows), weights, _given_reference(given, rows, name))


def prepared_texts(given: Dataset, renderer: Renderer, name: str) -> Dataset:
    """What a user gave as texts to keep, as tokens: rows of any format of `load_retain`, or tokens.

    Raises:
        UserError: a row is in no format, or tokenised rows do not say rightly where their responses are.
    """
    _refuse_no_dataset(given, "retain", name)
    if "input_ids" in given.column_names:
        _check_tokenised(given, name)
        return given
    return _tokenized(_loaded(given, "retain", name), renderer, name)


FILLER = -1
"""The item of `PositiveRows` that stands where a process would go without."""


class PositiveRows(torch.utils.data.Dataset):
    """The tokenised negatives of positive weight, each with its `index`, the position in the whole set of N.

    A filler is the first of them with its index less N: looked up it is the same row, and below 0 it counts
    for nothing.
    """

    def __init__(self, negatives: Dataset, positions: np.ndarray) -> None:
        self.negatives, self.positions = negatives, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: int) -> dict[str, Any]:
        position = int(self.positions[0 if item == FILLER else item])
        return {
            **self.negatives[position],
            "index": position - (len(self.negatives) if item == FILLER else 0),
        }


class EvenOrder:
    """The order of one process alone, made up with fillers to micro-batches of the same size everywhere.

    Libraries fill up with rows from the beginning of the pass, which would count twice.

    Args:
        rows: to be shuffled. together: rows of one micro-batch over all processes. seed: None = torch's own.
    """

    def __init__(self, rows: PositiveRows, together: int, seed: int | None) -> None:
        self.order = SeedableRandomSampler(rows, data_seed=seed)
        self.fillers = -len(rows) % together

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from repeat(FILLER, self.fillers)

    def __len__(self) -> int:
        return len(self.order) + self.fillers

    def set_epoch(self, epoch: int) -> None:
        """Which pass is next: each has an order of its own."""
        self.order.set_epoch(epoch)


def checked_weights(weights: np.ndarray, rows: int, name: str = "train_dataset") -> np.ndarray:
    """Weights (N,) ≥ 0, not all 0; ones where none are given.

    Raises:
        UserError: a weight is negative or not finite, or all are 0.
    """
    if len(weights) == 0:
        return np.ones(rows)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise UserError(f"{name} row {bad[0]}: weight is {weights[bad[0]]}; it must be finite and ≥ 0")
    if not weights.any():
        raise UserError(f"{name}: every weight is 0, so there is nothing to unlearn")
    return weights


def _refuse_no_dataset(given: Any, role: str, name: str) -> None:
    if given is None or hasattr(given, "column_names"):
        return
    how = "`datasets.Dataset.from_list` makes one of rows"
    if isinstance(given, str | os.PathLike):
        how = f"`load_{role}` reads one from a path"
    raise UserError(f"{name} must be a `datasets.Dataset`, it is {type(given).__name__}: {how}")


def _check_tokenised(given: Dataset, name: str) -> None:
    for column in ("response_start", "n_tokens"):
        if column not in given.column_names:
            raise UserError(
                f"{name} has input_ids and no {column}: rows that are tokenised already also say where the "
                "response begins (response_start) and how many tokens it has (n_tokens); or give the texts"
            )
    lengths, starts = token_counts(given), np.asarray(given["response_start"], np.int64)
    for row in np.flatnonzero((starts < 1) | (starts >= lengths))[:1]:
        raise UserError(
            f"{name} row {row}: response_start is {starts[row]} of {lengths[row]} tokens; it must be at "
            "least 1, since nothing predicts the first token of a text, and below their number"
        )
    counts = np.asarray(given["n_tokens"], np.int64)
    for row in np.flatnonzero(counts != lengths - starts)[:1]:
        raise UserError(
            f"{name} row {row}: n_tokens is {counts[row]}, but from response_start {starts[row]} on there "
            f"are {lengths[row] - starts[row]} tokens: give that number"
        )


def _refuse_good(given: Dataset, name: str) -> None:
    if "label" in given.column_names and any(given["label"]):
        raise UserError(
            f"{name} holds rows whose label is true, that is good answers: keep only those to "
            f"unlearn, `{name}.filter(lambda row: not row['label'])`"
        )


def _loaded(given: Dataset, role: str, name: str) -> Dataset:
    """Rows as `load_negatives` or `load_retain` makes them, whose `row` is the position in what was given;
    those that one of the two has made as they are."""
    if all(given.features.get(column) == kind for column, kind in FEATURES[role].items()):
        return given
    load = load_negatives if role == "negatives" else load_retain
    with _called(name):
        rows = load(given.with_format(None))
    left_out = len(given) - len(set(rows["source_row"]))
    if left_out:
        log.warning("%s: %d of %d rows are left out by their label", name, left_out, len(given))
    return rows.remove_columns("row").add_column("row", rows["source_row"][:])


def _tokenized(rows: Dataset, renderer: Renderer, name: str) -> Dataset:
    with _called(name):
        return tokenize_rows(rows, renderer, role=name)


@contextmanager
def _called(name: str) -> Iterator[None]:
    """Within, errors call rows that were given by that name."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(GIVEN, name, 1)) from error


def _given_reference(given: Dataset, rows: Dataset, name: str) -> torch.Tensor | None:
    """s_ref of `rows` where a column of what was `given` has it.

    Raises:
        UserError: a row has two negatives and so no s_ref of either.
    """
    if "ref_logprob" not in given.column_names:
        return None
    found = given["ref_logprob"][:]
    for row, value in enumerate(found):
        if value is None or not math.isfinite(value):
            raise UserError(f"{name} row {row}: ref_logprob is {value}; it must be a finite number")
    values = torch.tensor(found, dtype=torch.float64)
    if rows is given:
        return values
    sources = rows["source_row"][:]
    if len(set(sources)) < len(sources):
        raise UserError(f"{name}: ref_logprob needs rows of one negative each: give those with two apart")
    return values[sources]


def _with_ids(negatives: Dataset, given: Dataset) -> Dataset:
    """With the rows' ids, if they have any, for messages."""
    if "id" not in given.column_names or "id" in negatives.column_names:
        return negatives
    return negatives.add_column("id", given["id"])
