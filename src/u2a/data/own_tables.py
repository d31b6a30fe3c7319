"""Rows that a run wrote for people to look at, which are not to be read again as data."""

from __future__ import annotations

from u2a.data.reading import Row
from u2a.types import UserError

_IMPACT_TABLE = frozenset({"row", "prompt", "response", "impact", "utility_cost"})
"""Columns of `impact.parquet`; no other file of rows is likely to have them all."""


def refuse_impact_table(raw: Row) -> None:
    """Refuses a row of `impact.parquet`: its prompt is a conversation written as one text.

    Read as it is, that text would be one user turn: a system turn and the turns of before would be lost.

    Raises:
        UserError: it is such a row; says what to give instead.
    """
    if raw.values.keys() >= _IMPACT_TABLE and isinstance(raw.values["prompt"], str):
        raise UserError(
            f"{raw.where}: this is the impact table of a run, whose prompts are conversations written as one "
            "text; its negatives with their scores are `weighted_negatives(RUN)` in Python (filter them and "
            "write them with `.to_json`), those of a pool the run's selected.jsonl, those that were reviewed "
            "its reviewed.jsonl"
        )
