"""The page of a chat: the same conversation as in the terminal, a column a model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from u2a.chat.conversation import Chat
from u2a.report.wording import visible
from u2a.served.page import LocalPage
from u2a.types import GuardStop, OutOfMemory, UserError

log = logging.getLogger("u2a")


class Words(BaseModel):
    """What the person says."""

    text: str = Field(max_length=100_000)


@dataclass(frozen=True)
class ChatAnswers:
    """Answers to the page's requests."""

    chat: Chat

    def about(self) -> dict[str, Any]:
        """The models, and the conversation so far: a page that is loaded again shows it again."""
        turns = [self._turn(turn["prompt"], turn["answers"]) for turn in self.chat.current]
        return {"models": [visible(name) for name in self.chat.names], "turns": turns}

    def ask(self, words: Words) -> JSONResponse:
        """The models' answers, or why there are none."""
        try:
            return JSONResponse(self._turn(words.text, self.chat.ask(words.text)))
        except UserError as error:
            return JSONResponse({"error": str(error)}, 409)
        except (GuardStop, OutOfMemory) as error:
            log.error("a model could not answer: %s", error)
            return JSONResponse({"error": str(error)}, 507)

    def reset(self) -> dict[str, Any]:
        """Begins a new conversation."""
        self.chat.reset()
        return {}

    def _turn(self, prompt: str, answers: dict[str, str]) -> dict[str, Any]:
        return {"prompt": visible(prompt), "answers": [visible(answers[name]) for name in self.chat.names]}


def chat_page(chat: Chat, port: int = 0) -> LocalPage:
    """The page, ready to be run.

    Raises:
        UserError: the port is taken, or not allowed.
    """
    page, answers = LocalPage("u2a.chat", port), ChatAnswers(chat)
    page.app.get("/about")(answers.about)
    page.app.post("/ask", response_model=None)(answers.ask)
    page.app.post("/reset")(answers.reset)
    return page
