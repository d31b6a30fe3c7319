"""What a person marked: `review.json`, to go on with later, and `reviewed.jsonl`, the negatives without it.

Both are written whole after every mark, `review.json` first: with it `reviewed.jsonl` can be made again.
Neither the source nor the run's own files are ever written to.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from u2a.data.load import locate
from u2a.data.raw_rows import RawRows
from u2a.storage.files import write_json
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

REASONS = ("wrong label", "exclude")
"""`wrong label`: the answer is not bad. `exclude`: it is, or may be, but is not to be unlearned."""
REVIEW, REVIEWED = "review.json", "reviewed.jsonl"


@dataclass(frozen=True)
class Mark:
    """Why a negative is left out, and the person's own words."""

    reason: str
    note: str = ""


@dataclass
class Review:
    """The marks on one set of negatives, by row.

    Args:
        folder: where the two files are.
        source: what the negatives were read from, for messages.
        negatives: canonical rows; `raw`: the same source's own rows.
    """

    folder: Path
    source: str
    negatives: Dataset
    raw: RawRows
    marks: dict[int, Mark] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def open(cls, folder: Path, source: str, negatives: Dataset, raw: RawRows) -> Review:
        """Goes on with the review in the folder, or begins one; writes both files.

        Raises:
            UserError: there is a `reviewed.jsonl` of somebody else's, or a review of other rows, or a broken
                one.
        """
        made = cls(folder, source, negatives, raw)
        if (folder / REVIEW).exists():
            made.marks = made._read()
        elif (folder / REVIEWED).exists():
            raise UserError(
                f"{folder / REVIEWED} is there, without the {REVIEW} of a review: it is not overwritten; "
                "name another --output"
            )
        if not made.remaining:
            raise UserError(f"{folder / REVIEW} marks every negative: remove it to begin again")
        made._write(made.marks)
        return made

    @property
    def reviewed(self) -> Path:
        """The negatives without what is marked."""
        return self.folder / REVIEWED

    @property
    def remaining(self) -> int:
        """How many negatives are left."""
        return len(self.negatives) - len(self.marks)

    @property
    def counts(self) -> dict[str, int]:
        """How many are left, and how many are marked, by reason."""
        found = Counter(mark.reason for mark in self.marks.values())
        return {"remaining": self.remaining, **{reason: found[reason] for reason in REASONS}}

    def mark(self, row: int, mark: Mark | None) -> None:
        """Marks a negative, or takes its mark away (None), and writes both files.

        Raises:
            UserError: there is no such row, no such reason, or no negative would be left.
            OSError: the files cannot be written; the marks are as before.
        """
        if not 0 <= row < len(self.negatives):
            raise UserError(f"row {row}: there are {len(self.negatives)} negatives, from row 0 on")
        if mark is not None and mark.reason not in REASONS:
            raise UserError(f"reason {mark.reason[:40]!r}: take one of {', '.join(REASONS)}")
        with self._lock:
            marks = {each: kept for each, kept in self.marks.items() if each != row}
            if mark is not None:
                marks[row] = mark
            if len(marks) == len(self.negatives):
                raise UserError("this is the last negative: something must be left to unlearn")
            self._write(marks)
            self.marks = marks

    def _write(self, marks: Mapping[int, Mark]) -> None:
        write_json(
            self.folder / REVIEW,
            {
                "schema": 1,
                "negatives": self.source,
                "digest": self.raw.digest,
                "marks": [self._entry(row, mark) for row, mark in sorted(marks.items())],
            },
        )
        self.raw.write(self.reviewed, self._instead(marks))

    @cached_property
    def _sources(self) -> NDArray[np.int64]:
        """(N,) the row of the source that each negative came from, ascending."""
        return np.asarray(self.negatives.data.column("source_row"))

    def _entry(self, row: int, mark: Mark) -> dict[str, Any]:
        """A mark with where its row stands; no text of the row."""
        negative = self.negatives[row]
        file, line = locate(self.negatives, negative["source_row"], self.source)
        return {"row": row, "id": negative["id"], "file": file, "file_row": line, **asdict(mark)}

    def _instead(self, marks: Mapping[int, Mark]) -> dict[int, list[dict[str, Any]]]:
        """What takes the place of the source's rows with marks: what is left of a row of two negatives."""
        found = {}
        for source_row in {int(self._sources[row]) for row in marks}:
            first, end = np.searchsorted(self._sources, [source_row, source_row + 1])
            left = [row for row in range(int(first), int(end)) if row not in marks]
            found[source_row] = [_alone(self.negatives[row]) for row in left]
        return found

    def _read(self) -> dict[int, Mark]:
        """The marks of `review.json`."""
        path = self.folder / REVIEW
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            digest = kept["digest"]
            marks = {each["row"]: Mark(each["reason"], each["note"]) for each in kept["marks"]}
            known = all(
                type(row) is int
                and 0 <= row < len(self.negatives)
                and mark.reason in REASONS
                and isinstance(mark.note, str)
                for row, mark in marks.items()
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: not what a review writes ({error!r:.80}); move it away") from None
        if digest != self.raw.digest:
            raise UserError(
                f"{path} marks other rows than those of {self.source}: name another --output, or move it away"
            )
        if not known:
            raise UserError(f"{path}: marks rows or reasons that there are not; move it away")
        return marks


def _alone(negative: Mapping[str, Any]) -> dict[str, Any]:
    """A negative that shared its row of the source with one that is marked, as a row of its own. `rejected`
    may stand among rows with and without labels."""
    weight = {} if negative["weight"] == 1 else {"weight": negative["weight"]}
    answer = {"prompt": negative["prompt"], "rejected": negative["response"]}
    return {**answer, **weight, **json.loads(negative["extra"])}
