"""Batches as a trainer has them: their fields by name, which accelerate can move and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from u2a.data.collate import collate
from u2a.types import Batch


@dataclass(frozen=True)
class Collator:
    """Rows with their `index` -> the fields of a batch."""

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return as_dict(collate(rows, [row["index"] for row in rows], pad_token_id=self.pad_token_id))


def as_dict(batch: Batch) -> dict[str, Tensor]:
    """What accelerate can move and split: the fields of a batch by name."""
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "labels": batch.labels,
        "index": batch.index,
    }


def as_batch(inputs: dict[str, Any]) -> Batch:
    """The batch whose fields these are."""
    return Batch(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], inputs["index"])


def pad_token_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id will do, since padding is masked: the pad token, else the end token, else 0."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0
