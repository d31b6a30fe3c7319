"""Options that a command cannot do without, asked for before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from u2a.types import UserError

WANTED = {
    "model": "the original model: a folder, a Hub id, a GGUF file, or `demo`",
    "negatives": "the bad answers",
    "preferences": "validation pairs with `prompt`, `chosen` and `rejected`; with none, take "
    "--objective nll and preferred texts, or --objective reward and prompts",
    "output": "a new folder for the run",
}


def require(values: Mapping[str, Any]) -> None:
    """Refuses options that leave out what every run needs; a pool stands for the negatives.

    Raises:
        UserError: names the option and what belongs there.
    """
    pooled = bool(values.get("pool"))
    for name, what in WANTED.items():
        if not values[name] and not (pooled and name == "negatives"):
            raise UserError(f"--{name} is missing: {what}")
    sources = ("negatives", "pool", "preferences", "test", "retain")
    stdin = [name for name in sources if values.get(name) == "-"]
    if len(stdin) > 1:
        raise UserError(f"only one of {', '.join('--' + s for s in stdin)} can be read from standard input")
