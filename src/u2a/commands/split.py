"""`u2a split`: the paper's protocol as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from u2a.commands.terminal import give, say
from u2a.types import UserError


def run(values: Mapping[str, Any], file: str) -> int:
    """Writes original, forget, retain, validation and test as jsonl files."""
    from u2a.data.load import load_preferences
    from u2a.data.split import split_rows, write_split

    if not values["output"]:
        raise UserError("--output is missing: a new folder for the parts")
    parts = split_rows(
        load_preferences(file),
        seed=values["seed"],
        validation=values["validation"],
        test=values["test"],
        train=values["train"] or None,
        chosen_fraction=values["chosen_fraction"],
    )
    folder = Path(values["output"]).expanduser()
    write_split(parts, folder)
    for name, rows in parts.items():
        say(f"{folder / name}.jsonl: {len(rows)} rows")
    give(
        parts={
            name: {"file": str(folder / f"{name}.jsonl"), "rows": len(rows)} for name, rows in parts.items()
        }
    )
    say(f"{len(parts)} parts are in {folder}.", essential=True)
    return 0
