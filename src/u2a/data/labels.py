"""Which rows of a file are labelled good or bad, and whether labels may have gone unread."""

from __future__ import annotations

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


def warn_of_unread_labels(raw: Row, role: str) -> None:
    """Of a file's first row: a verdict or a number that may say which answers are good, and is not read."""
    if {"chosen", "rejected"} <= raw.values.keys():  # the format says it, and scores are of both answers
        return
    unread = [
        key
        for key, value in raw.values.items()
        if key not in formats.READ_KEYS and _may_be_a_verdict(key, value)
    ]
    if unread:
        log.warning(
            "%s: `%s` is not read, and every answer counts as one of the %s rows; if it says which are good, "
            "write it as a column `label` (true = good)",
            *(raw.where, printable(unread[0]), role),
        )


def _may_be_a_verdict(key: str, value: object) -> bool:
    """By the last word of the column's name (`user_feedback`, not `feedback_id`) and by the value."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).lower()) or [""]
    said = words[-2] if words[-1] in ("up", "down") and len(words) > 1 else words[-1]
    if not _LIKE_A_LABEL.fullmatch(said):
        return False
    text = re.sub(r"^thumbs?[ _-]", "", str(value).strip().lower())
    if isinstance(value, bool) or text in _VERDICTS:
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
