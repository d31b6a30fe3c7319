"""`Example:` in a docstring is a section of code, as `Examples:` is: griffe knows the plural alone.

An extension of griffe, which reads docstrings for the site (mkdocs.yml). Without it examples would be prose.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class DocstringExamples(griffe.Extension):
    """Renames the section before it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object once its members are there."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
