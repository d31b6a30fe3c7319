"""A digest of rows: what was made of other rows is not taken for theirs."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("prompt", "response", "chosen", "rejected", "weight")


def rows_digest(rows: Dataset) -> str:
    """Changes when a prompt, an answer or a prior weight does, or the order of the rows."""
    digest = hashlib.sha256()
    for row in rows.select_columns([name for name in COLUMNS if name in rows.features]):
        digest.update(json.dumps(row, sort_keys=True).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]
