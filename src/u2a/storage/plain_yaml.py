"""YAML files of others: plain values alone, and not more of them than fit into memory."""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES = 10_000
"""Most values of one file."""


def plain_values(text: str) -> Any:
    """What a YAML text holds: plain values, never an object of Python's.

    Raises:
        ValueError: it is no YAML, names a type of Python's, has a value that is not its tag's, is nested too
            deeply, or holds more than `MOST_VALUES`, each counted as often as an alias repeats it.
    """
    try:
        content = _Loader(text).get_single_data()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)[:500]) from None
    except Exception as error:  # ValueError, KeyError, ... for a value that is not its tag's
        raise ValueError(f"a value in it: {error!r}"[:500]) from None
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


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but `<<` of `<<` cannot make a mapping that never ends growing."""

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES:
            raise yaml.constructor.ConstructorError(None, None, "too many keys", node.start_mark)
