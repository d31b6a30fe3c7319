"""A judge by rule, in the place of a language model: the shorter answer is the better one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from u2a import Message, option


@dataclass(frozen=True)
class Short:
    """Reads what u2a would ask an LLM judge: texts quoted between lines `NONCE begin answer A` and `… end …`.

    A judge that asks a model of its own would pass `messages` on and give back the reply as it is.
    """

    slack: int = option(0, "short: characters that do not count as a difference.", least=0)

    def __call__(self, messages: Sequence[Message]) -> str:
        """`[[A]]`, `[[B]]` or `[[C]]` for two answers, `no` for an attack."""
        text = messages[-1]["content"]
        quoted = re.findall(r"^(\w+) begin answer [AB]\n(.*?)\n\1 end answer [AB]$", text, re.S | re.M)
        if len(quoted) < 2:
            return "no"
        a, b = (len(answer) for _, answer in quoted[-2:])
        if abs(a - b) <= self.slack:
            return "[[C]]"
        return "[[A]]" if a < b else "[[B]]"
