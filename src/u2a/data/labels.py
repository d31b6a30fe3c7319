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
    "accepted|appropriate|bad|chosen|correct|flagged|good|harmful|harmless|labels?|liked|ok|preferred|rejected|"
    "safe|thumbs|toxic|unsafe|upvoted"
)
"""Words in the names of columns that may say which answers are good."""


def warn_of_unread_labels(raw: Row, role: str) -> None:
    """Of a file's first row: a true or false that may say which answers are good, and is not read."""
    unread = [
        key
        for key, value in raw.values.items()
        if key not in formats.READ_KEYS
        and (isinstance(value, bool) or str(value).lower() in ("true", "false"))
        and any(map(_LIKE_A_LABEL.fullmatch, re.split(r"[^a-z]+", key.lower())))
    ]
    if unread:
        log.warning(
            "%s: `%s` is not read, and every answer counts as one of the %s; if it says which are good, call "
            "it `label` (true = good)",
            *(raw.where, printable(unread[0]), role),
        )


def labelled_alike(labelled: bool | None, raw: Row) -> bool | None:
    """Refuse a file whose rows are labelled in part: an unlabelled good answer would count as a negative."""
    here = formats.has_label(raw.values)
    if labelled is not None and here is not None and here != labelled:
        state = (
            "has a `label`, rows before it have none" if here else "has no `label`, rows before it have one"
        )
        raise UserError(f"{raw.where}: the row {state}; label every row of a file or none")
    return labelled if here is None else here
