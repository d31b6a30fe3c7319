"""`u2a chat`: the original model and others answer the same words, side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from u2a.commands.evaluate import load_subject, model_names
from u2a.commands.evaluation_runs import as_the_runs, check_models, other_originals
from u2a.commands.options import ChatOptions
from u2a.commands.review import need_served, serve
from u2a.commands.session import say_warnings
from u2a.commands.terminal import Bars, give, print_beside, say
from u2a.evaluation.readings import ORIGINAL
from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.chat.conversation import Chat
    from u2a.evaluation.subject import Subject

HELP = "/reset begins a new conversation, /quit ends; a message that begins with / is written with //."
UNUSED = {"generation_batch": 1, "score_tokens": 1}
"""What an evaluation needs to load a model, and a chat does not."""


def run(values: Mapping[str, Any], models: Sequence[str]) -> int:
    """Loads every model once, adapters of the original on its weights, then talks until /quit, the end of the
    input, or the page's own button."""
    if values["serve"]:
        need_served("u2a chat --serve")
    from u2a.chat.conversation import Chat

    names = model_names(models, values["original"])
    check_models(names, trust_remote_code=values["trust_remote_code"])
    # `max_length` is a conversation's here and not a row's, so the run's does not hold for it
    values, differ = as_the_runs(values, models, {"template": "auto"})
    say_warnings([*other_originals(models, names[ORIGINAL]), *differ])
    with Bars() as bars:
        chat = Chat(_load_all(names, values, bars))
    give(models=names, turns=chat.turns)
    if values["serve"]:
        from u2a.chat.page import chat_page

        serve(chat_page(chat, values["port"]))
    else:
        say(HELP)
        talk(chat)
    return 0


def _load_all(names: Mapping[str, str], values: Mapping[str, Any], bars: Bars) -> list[Subject]:
    from u2a.models.shared_base import policy_beside

    usual = ChatOptions.max_length
    subjects: list[Subject] = []
    for name, source in names.items():
        policy = None
        if subjects:
            trust = values["trust_remote_code"]
            policy = policy_beside(subjects[0].policy, source, trust_remote_code=trust)
        say(f"Loading {name}: {source}{' (on the weights of the original model)' if policy else ''}")
        subjects.append(load_subject(name, source, None, {**UNUSED, **values}, bars, policy, usual))
    return subjects


def talk(chat: Chat) -> None:
    """In the terminal, or with lines of the standard input, each of which is a message.

    Raises:
        UserError: the input is no text.
    """
    typed = sys.stdin.isatty()
    for line in _lines(typed):
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            chat.reset()
            say("A new conversation.")
        elif text.startswith("/") and not text.startswith("//"):
            say(HELP, essential=True)
        elif text:
            _turn(chat, text.removeprefix("/"), typed)


def _turn(chat: Chat, text: str, typed: bool) -> None:
    try:
        if not typed:
            say(f"> {text}", essential=True)
        print_beside(chat.ask(text))
    except (KeyboardInterrupt, UserError) as stop:
        if not typed:
            raise
        say(f"Not said: {str(stop) or 'stopped'}", essential=True)


def _lines(typed: bool) -> Iterator[str]:
    if typed:
        with suppress(ImportError):  # arrow keys and history, where Python was built with it
            import readline  # noqa: F401
        with suppress(EOFError, KeyboardInterrupt):
            while True:
                yield input("> ")
        return
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text ({error.reason})") from None
