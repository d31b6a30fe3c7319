"""What the page carries in little space: gzip in base64, which the browser inflates by itself.

Base64 has no character that HTML reads, so what people wrote cannot get out of it, whatever it says.
"""

from __future__ import annotations

import base64
import gzip
import json
from functools import cache
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs


def packed(text: str) -> Markup:
    """The text as base64 of gzip; equal texts give equal bytes."""
    return Markup(base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode())


def packed_json(value: Any) -> Markup:
    """The value as JSON, packed.

    Raises:
        ValueError: it holds a number that is not finite, which JSON does not know.
    """
    return packed(json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False))


@cache
def packed_plotly() -> tuple[str, Markup]:
    """plotly.js as its text (for the hash of the page's policy) and packed."""
    text = get_plotlyjs()
    return text, packed(text)
