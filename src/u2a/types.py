"""What crosses rooms: batches, conversations, and the errors every room raises.

Shapes: B examples in a batch, T padded tokens, N rows of a data set, R response tokens of a batch.
Units: log-probabilities are in nats. Signs: `impact` > 0 means unlearning that negative raises the
preference objective J; `utility_cost` > 0 means it lowers the utility U.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import torch

IGNORE = -100
"""Label of a token that is not part of the response (the value torch's cross entropy ignores)."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Batch:
    """Padded examples, as the collator makes them.

    Shapes: `input_ids`, `attention_mask`, `labels` are (B, T) int64; `index` is (B,) int64, each example's
    position in the data set it came from. `labels` holds the token itself at response positions and
    `IGNORE` at prompt and padding positions: it is *not* shifted (only `u2a.logprobs` shifts).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.labels.to(device),
            self.index.to(device),
        )


@dataclass(frozen=True)
class PackedBatch:
    """Several texts in each row, those with the same prompt sharing one copy of it.

    Shapes: `input_ids`, `position_ids` are (B, T) int64, positions counted within each text; `mask`
    (B, 1, T, T) bool says which token sees which. Of the R response tokens, `rows` and `columns` (R,) are the
    places that predict them, `targets` (R,) the tokens, `example` (R,) their text's place in `index`; tokens
    of one text follow each other. `index` is (N,) int64, each text's position in the data set it came from.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    example: torch.Tensor
    index: torch.Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        return PackedBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


def shown(value: Any) -> str:
    """`repr(value)` for a message, of bounded length: YAML's references can make a value that is never done
    printing, and Python refuses to print whole numbers of more than 4,300 digits."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return "a number of too many digits"


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxset, _SHORT.maxtuple = 3, 4, 4, 4, 4
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


class UserError(Exception):
    """Something the user can mend: says what is wrong, where, and what to do. Exit status 2."""


class GuardStop(Exception):  # noqa: N818 - a stop, not an error of ours
    """A guard ended the run: non-finite values or a limit passed. Exit status 3; the run can be resumed."""


class OutOfMemory(Exception):  # noqa: N818 - a stop, not an error of ours
    """The smallest batch there is does not fit into memory. Exit status 3; the run can be resumed."""
