"""What the page carries in little space: gzip in base64, which the browser inflates by itself.

Base64 has no character that HTML reads, so what people wrote cannot get out of it, whatever it says.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from functools import cache
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs


def packed(text: str) -> Markup:
    """The text as base64 of gzip; equal texts give equal bytes. A lone surrogate becomes a question mark."""
    return Markup(base64.b64encode(gzip.compress(text.encode(errors="replace"), 9, mtime=0)).decode())


def packed_json(value: Any) -> Markup:
    """The value as JSON, packed. A number that is not finite, which JSON does not know, becomes null."""

    def text(of: Any) -> str:
        return json.dumps(of, allow_nan=False, separators=(",", ":"), ensure_ascii=False)

    try:
        return packed(text(value))
    except ValueError:  # only a file that no run of ours has written holds one
        return packed(text(_finite(value)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def packed_plotly() -> tuple[str, Markup]:
    """plotly.js as its text (for the hash of the page's policy) and packed."""
    text = get_plotlyjs()
    return text, packed(text)
