"""What the options of methods may be: their fields say it, as `u2a.config.option` makes them."""

from __future__ import annotations

import dataclasses
from typing import Any

from u2a.config import refusal
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
            if wrong := _refusal(f, value):
                raise UserError(f"{f.name} is {shown(value)}: {wrong}")


def _refusal(option: dataclasses.Field[Any], value: Any) -> str:
    """What to take instead; empty where the value is fine."""
    if option.name != "select":
        return refusal(value, **option.metadata)
    try:
        parse_selection(value, 1)
    except UserError:
        return HOW_MANY
    return ""
