"""Which rows of a file are labelled good or bad, and whether labels may have gone unread."""

from __future__ import annotations

import functools
import logging
import re

from u2a.data import formats
from u2a.data.reading import Row
from u2a.printable import printable
from u2a.types import UserError

log = logging.getLogger("u2a")

_LIKE_A_LABEL = re.compile(
    "accepted|appropriate|bad|chosen|correct|disliked?|feedback|flagged|good|grade|harmful|harmless|labels?|"
    "liked?|ok|preferred|ratings?|rejected|reward|safe|score|stars|thumbs?|toxic|unsafe|upvoted|upvotes?|votes?"
)
"""Words in the names of columns that may say which answers are good."""
_VERDICTS = {
    "up",
    "down",
    "yes",
    "no",
    "good",
    "bad",
    "positive",
    "negative",
    "pos",
    "neg",
    "like",
    "dislike",
}
_VERDICTS |= {"true", "false", "ok", "safe", "unsafe", "accept", "reject", "accepted", "rejected", "👍", "👎"}
"""Words in such a column that say so of one answer."""


class UnreadLabels:
    """Tells of columns that may say which answers are good and are not read: once for each file and column.

    Every row is looked at, since the first ones may have no vote yet. That is cheap: only cells of columns
    with such a name are looked at, and of those none after a warning.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self._told: set[tuple[str, str]] = set()

    def look(self, file: str, raw: Row) -> None:
        """At a row in which no column that is read says whether its answer is good."""
        if "chosen" in raw.values and "rejected" in raw.values:  # the format says it; scores are of both
            return
        unread = [key for key, value in raw.values.items() if self._may_be_a_verdict(file, key, value)]
        if unread:
            self._told.update((file, key) for key in unread)
            log.warning(
                "%s: %s not read, and every answer counts as one of the %s rows; if it says which are good, "
                "write it as a column `label` (true = good)",
                raw.where,
                ", ".join(f"`{printable(key)}`" for key in unread) + (" is" if len(unread) == 1 else " are"),
                self.role,
            )

    def _may_be_a_verdict(self, file: str, key: str, value: object) -> bool:
        """By the last word of the column's name (`user_feedback`, not `feedback_id`) and by the value."""
        said = "" if key in formats.READ_KEYS else _last_word(key)
        return said != "" and (file, key) not in self._told and _is_verdict(said, value)


@functools.lru_cache(maxsize=1024)
def _last_word(key: str) -> str:
    """What a column is called, where that may say which answers are good; else nothing."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).lower()) or [""]
    said = words[-2] if words[-1] in ("up", "down") and len(words) > 1 else words[-1]
    return said if _LIKE_A_LABEL.fullmatch(said) else ""


def _is_verdict(said: str, value: object) -> bool:
    if isinstance(value, bool):
        return True
    text = re.sub(r"^thumbs?[ _-]", "", str(value).strip().lower())
    if text in _VERDICTS:
        return True
    number = re.fullmatch(r"[-+]?\d+(\.\d+)?", text) is not None
    return number and said not in ("chosen", "rejected", "preferred", "accepted")  # scores of answers


def labelled_alike(labelled: bool | None, raw: Row) -> bool | None:
    """Refuse a file whose rows are labelled in part: an unlabelled good answer would count as a negative."""
    here = formats.has_label(raw.values)
    if labelled is not None and here is not None and here != labelled:
        state = (
            "has a `label`, rows before it have none" if here else "has no `label`, rows before it have one"
        )
        raise UserError(f"{raw.where}: the row {state}; label every row of a file or none")
    return labelled if here is None else here
