"""A judge of the user's own, asked in the place of an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from u2a.types import Message, UserError


class Judge(Protocol):
    """A dataclass that is called with a conversation and gives the reply's text.

    The conversation is u2a's own request (`u2a.evaluation.pairwise`), with the texts to judge quoted in it,
    and the reply is read as an endpoint's is: so a local model, a gateway or a rule can be a judge.
    """

    def __call__(self, messages: Sequence[Message]) -> str:
        """The reply."""
        ...


@dataclass(frozen=True)
class OwnJudge:
    """Asks it one request after another, with consent: where it sends them, u2a cannot know."""

    judge: Judge
    name: str

    def check(self) -> None:
        """There is nothing to look at."""

    def describe(self, requests: Mapping[str, Sequence[Message]]) -> str:
        """What it would get. Asks nothing."""
        return f"judge: {len(requests)} requests, with prompts and answers in full, go to {self.name}"

    def ask(
        self,
        requests: Mapping[str, Sequence[Message]],
        *,
        consent: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, str | None]:
        """The replies by name; equal requests are asked once.

        Raises:
            UserError: there is no consent; the judge raised something, or its reply is no text.
        """
        if not consent:
            raise UserError("nothing was sent to the judge: it needs --send-to-judge")
        known: dict[str, str] = {}
        found: dict[str, str | None] = {}
        for name, messages in requests.items():
            key = repr(messages)
            if key not in known:
                known[key] = self._reply(messages)
            found[name] = known[key]
            if progress:
                progress(1)
        return found

    def _reply(self, messages: Sequence[Message]) -> str:
        try:
            reply = self.judge(messages)
        except Exception as error:
            raise UserError(f"--judge {self.name} raised {type(error).__name__}: {error}") from error
        if not isinstance(reply, str):
            raise UserError(f"--judge {self.name} must reply with text, not {type(reply).__name__}")
        return reply
