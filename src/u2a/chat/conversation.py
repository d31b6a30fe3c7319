"""One person's words to several models at once: each goes on with its own answers, all sample alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.evaluation.subject import Answer, Subject
    from u2a.types import Message


@dataclass
class Chat:
    """Conversations with models, the original first.

    Every turn is sampled with the same seed, so that after `reset` the same words get the same answers.
    `turns` are all that there were: `prompt`, `answers` by model, and the number of their `conversation`.
    """

    subjects: Sequence[Subject]
    turns: list[dict[str, Any]] = field(default_factory=list)
    _conversation: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def names(self) -> list[str]:
        """The models, as they are shown."""
        return [subject.name for subject in self.subjects]

    def ask(self, text: str) -> dict[str, str]:
        """What each model, by name, answers in the conversation so far; an answer that was cut off says so.

        Raises:
            UserError: there is no text, or what is no text in it.
            OutOfMemory, GuardStop: a model could not answer; the turn has not happened.
        """
        if not text.strip():
            raise UserError("an empty message: write something")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError("the message is not UTF-8 text") from None
        with self._lock:
            answers = {}
            for subject in self.subjects:
                prompt = [*self._said(subject.name), _message("user", text)]
                # remembered under the prompt itself: the same one again is the same answer
                (answers[subject.name],) = subject.answers(json.dumps(prompt), [prompt])
            said = {name: answer.text for name, answer in answers.items()}
            self.turns.append({"conversation": self._conversation, "prompt": text, "answers": said})
        return {name: _shown(answer) for name, answer in answers.items()}

    def reset(self) -> None:
        """Begins a new conversation."""
        with self._lock:
            self._conversation += 1

    @property
    def current(self) -> list[dict[str, Any]]:
        """The turns of the conversation that goes on."""
        return [turn for turn in self.turns if turn["conversation"] == self._conversation]

    def _said(self, name: str) -> list[Message]:
        found = []
        for turn in self.current:
            found += [_message("user", turn["prompt"]), _message("assistant", turn["answers"][name])]
        return found


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _shown(answer: Answer) -> str:
    return answer.text if answer.ended else f"{answer.text} […cut after {answer.tokens} tokens]"
