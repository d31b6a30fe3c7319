"""YAML files of others: plain values alone, and not more of them than fit into memory."""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES = 10_000
"""Most values of one file."""


def plain_values(text: str) -> Any:
    """What a YAML text holds: plain values, never an object of Python's.

    Raises:
        ValueError: it is no YAML, names a type of Python's, is nested too deeply, or holds more than
            `MOST_VALUES`, each counted as often as an alias repeats it.
    """
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from None
    left, count = [content], 0
    while left:
        value = left.pop()
        count += 1
        if count > MOST_VALUES:  # nine lines of aliases can stand for more than memory holds
            raise ValueError(f"it holds more than {MOST_VALUES:,} values")
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, (list, set)):
            left += value
    return content
