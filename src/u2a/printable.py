"""Text of others made harmless for a terminal and a log: what could act on them becomes visible."""

from __future__ import annotations


def printable(text: str) -> str:
    """One line: control characters (8-bit ones too), line ends, changes of writing direction and halves of
    surrogate pairs become visible escapes such as `\\x1b`."""
    return "".join(c if c.isprintable() or c == " " else f"\\x{ord(c):02x}" for c in text)


def printable_lines(text: str) -> str:
    """As `printable`, of each line by itself: line feeds and tabs stay."""
    return "".join(c if c in "\n\t" else printable(c) for c in text)
