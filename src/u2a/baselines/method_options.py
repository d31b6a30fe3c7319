"""What the options of methods may be: their fields say it, as `u2a.config.option` makes them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from u2a.types import UserError, shown
from u2a.weighting import HOW_MANY, parse_selection


class Checked:
    """A method that refuses values outside the choices and bounds of its fields when it is made.

    Raises:
        UserError: names the option, its value and what to take.
    """

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if wanted := _wanted(f, value):
                raise UserError(f"{f.name} is {shown(value)}: {wanted}")


def _wanted(option: dataclasses.Field[Any], value: Any) -> str:
    """What to take instead; empty where the value is fine."""
    choices, least, above = (option.metadata[key] for key in ("choices", "least", "above"))
    if option.name == "select":
        return "" if _selects(value) else HOW_MANY
    if choices and value not in choices:
        return f"take {' or '.join(choices)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "take a finite number"
    if least is not None and value < least:
        return f"take at least {least:g}"
    if above is not None and value <= above:
        return f"take a number above {above:g}"
    return ""


def _selects(value: str) -> bool:
    try:
        return parse_selection(value, 1) == 1
    except UserError:
        return False
