"""What a trainer goes through: rows as tokens, negatives of positive weight, shared out evenly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler

from u2a.data.collate import tokenize_rows
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.data.render import Renderer


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
    """What a user gave as negatives: the columns are those of `UnlearnTrainer`'s `train_dataset`.

    Args:
        name: what messages call them.

    Raises:
        UserError: there are none, a column is missing, a row is labelled good, or a weight is unusable.
    """
    if given is None or len(given) == 0:
        raise UserError(f"{name} is empty: there is nothing to unlearn")
    columns = given.column_names
    if "label" in columns and any(value is True for value in given["label"]):
        raise UserError(
            f"{name} holds rows whose label is true, that is good answers: keep only those to "
            f"unlearn, `{name}.filter(lambda row: not row['label'])`"
        )
    weights = checked_weights(
        np.asarray(given["weight"] if "weight" in columns else [], float), len(given), name
    )
    kept = "ref_logprob" in columns
    reference = torch.tensor(given["ref_logprob"], dtype=torch.float64) if kept else None
    return Negatives(with_ids(tokenized(given, renderer), given), weights, reference)


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


def tokenized(rows: Dataset, renderer: Renderer) -> Dataset:
    """Rows of TRL's formats as tokens; those that are tokenised already as they are.

    Raises:
        UserError: a column is missing.
    """
    if "input_ids" in rows.column_names:
        return rows
    response = "response" if "response" in rows.column_names else "completion"
    missing = {"prompt", response} - set(rows.column_names)
    if missing:
        found = ", ".join(rows.column_names)
        raise UserError(
            f"the data set has no column {' or '.join(sorted(missing))}; its columns are: {found}"
        )
    if isinstance(rows[0]["prompt"], str):
        rows = rows.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    if isinstance(rows[0][response], list):  # TRL's conversational format: one assistant turn
        rows = rows.map(lambda row: {response: row[response][-1]["content"]})
    return tokenize_rows(rows, renderer, response=response)


def with_ids(negatives: Dataset, given: Dataset) -> Dataset:
    """With the rows' ids, if they have any, for messages."""
    if "id" not in given.column_names or "id" in negatives.column_names:
        return negatives
    return negatives.add_column("id", given["id"])
