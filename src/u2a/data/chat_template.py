"""How a tokenizer's chat template writes turns: what it refuses or leaves out, and where an answer stands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError

from u2a.types import UserError

log = logging.getLogger("u2a")

Turns = Sequence[Mapping[str, str]]

PROBE = "U2A-RESPONSE"
_TEMPLATE_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
_WAY_OUT = "use --template none, or a tokenizer whose template shows it"


class Frame(NamedTuple):
    """What stands around a response: `scaffold` and `lead` before it, `end` (the end of turn) behind it;
    `tail` is all that the template writes there, such as a line break behind the end of turn."""

    scaffold: str
    lead: str
    end: str
    tail: str


class ChatTemplate:
    """The chat template of a tokenizer, run in transformers' own sandbox; without one, plain turns.

    What a conversation says stands in the prompt, or it is refused: once for every sequence of roles, turns
    that are easy to find are written in its place. A template that shows nothing of a text, because it is
    made for lists of parts (models that see images), is given lists. A system turn that is refused or left
    out goes to the head of the first user turn.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._left_out: dict[tuple[str, ...], bool] = {}
        self._told = False

    @property
    def is_plain(self) -> bool:
        """Whether the tokenizer has no template."""
        return self._tokenizer.chat_template is None

    def prompt(self, messages: Turns) -> str:
        """A prompt up to where the answer begins.

        Raises:
            UserError: the template refuses the conversation, or leaves out what it says.
        """
        if self.is_plain:
            turns = [f"{m['role'].capitalize()}: {m['content']}" for m in messages]
            # The space that follows belongs to the answer: tokenizers join it to the first word.
            return "\n\n".join([*turns, "Assistant:"])
        try:
            text = self._prompt(messages)
        except TemplateError as error:
            roles = ", ".join(m["role"] for m in messages)
            raise UserError(
                f"the model's chat template refuses this conversation ({error}); its roles are: {roles}; "
                "mend the turns, or use --template none"
            ) from error
        if self._leaves_out_system(messages) and not self._told:
            self._told = True
            log.warning(
                "the model's chat template leaves out system turns: they go to the head of the user turn"
            )
        return text

    @cached_property
    def frame(self) -> Frame:
        """Where the template puts an answer, found by rendering one that is easy to find.

        Raises:
            UserError: it refuses or leaves out answers.
        """
        if self.is_plain:
            return Frame("", " ", self._eos, self._eos)
        question = {"role": "user", "content": "Hello"}
        prompt = self.prompt([question])
        try:
            whole = self._chat([question, {"role": "assistant", "content": PROBE}])
        except TemplateError as error:
            raise UserError(
                f"the model's chat template refuses an answer ({error}); use --template none"
            ) from error
        head, found, tail = whole.rpartition(PROBE)
        if not found:
            raise UserError(f"the model's chat template leaves out an answer: {_WAY_OUT}")
        between = head.removeprefix(prompt) if head.startswith(prompt) else ""
        scaffold, lead = (between, "") if between.strip() else ("", between)
        return Frame(scaffold, lead, self._end_of_turn(tail), tail)

    @property
    def ending_token(self) -> str:
        """The added token that ends an answer; empty where an answer ends in plain text, or is refused."""
        try:
            end = self.frame.end
        except UserError:  # a row's own error says more
            return ""
        added = (t.content for t in self._tokenizer.added_tokens_decoder.values())
        return max((token for token in added if end.endswith(token)), key=len, default="")

    @cached_property
    def around_turns(self) -> str:
        """Text with everything that the template puts around system and user turns; empty without one."""
        if self.is_plain:
            return ""
        question = {"role": "user", "content": PROBE}
        try:
            return self._prompt([{"role": "system", "content": PROBE}, question]) + self._prompt([question])
        except (UserError, TemplateError):  # a row's own error says more
            return ""

    @cached_property
    def moves_system(self) -> bool:
        """Whether it leaves out the system turn before a question, which is put elsewhere then."""
        try:
            return not self.is_plain and self._leaves_out_system([{"role": "system"}, {"role": "user"}])
        except UserError:
            return False

    def _prompt(self, messages: Turns) -> str:
        """Raises `TemplateError` where the template refuses them, and `UserError` where it leaves one out."""
        if self._leaves_out_system(messages):
            return self._prompt(without_system(messages))
        try:
            return self._chat(messages, add_generation_prompt=True)
        except TemplateError:
            if messages[0]["role"] == "system":
                try:
                    return self._prompt(without_system(messages))
                except TemplateError:
                    pass
            raise

    def _leaves_out_system(self, messages: Turns) -> bool:
        """Whether of turns of these roles it leaves out a system turn at the head, and no other.

        Raises:
            UserError: it leaves out another one.
        """
        roles = tuple(m["role"] for m in messages)
        if roles not in self._left_out:
            self._left_out[roles] = self._lost(roles) == [0] and roles[0] == "system"
        return self._left_out[roles]

    def _lost(self, roles: Sequence[str]) -> list[int]:
        """The turns of which nothing is written; none where the template refuses such turns altogether."""
        probes = [{"role": role, "content": f"U2A-TURN-{i}-"} for i, role in enumerate(roles)]
        try:
            text = self._chat(probes, add_generation_prompt=True)
        except TemplateError:
            return []
        lost = [i for i, probe in enumerate(probes) if probe["content"] not in text]
        if lost and (lost != [0] or roles[0] != "system"):
            raise UserError(
                f"the model's chat template leaves out what a turn says: {roles[lost[-1]]}, number "
                f"{lost[-1] + 1} of {', '.join(roles)}; {_WAY_OUT}"
            )
        return lost

    @cached_property
    def _content(self) -> Callable[[str], Any]:
        """What the template takes for the content of a turn: a text, or a list of parts."""
        return next((form for form in (_text, _parts) if self._shows(form)), _text)

    def _shows(self, form: Callable[[str], Any]) -> bool:
        """Whether question and answer stand in what is written of contents of that form."""
        question = {"role": "user", "content": form("U2A-QUESTION")}
        answer = {"role": "assistant", "content": form(PROBE)}
        try:
            prompt = self._written([question], add_generation_prompt=True)
            return "U2A-QUESTION" in prompt and PROBE in self._written([question, answer])
        except TemplateError:
            return False

    def _chat(self, messages: Turns, **options: Any) -> str:
        """Raises `TemplateError`, whatever the template, which came with the model, does wrong."""
        return self._written([{**m, "content": self._content(m["content"])} for m in messages], **options)

    def _written(self, messages: list[dict[str, Any]], **options: Any) -> str:
        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except TemplateError:
            raise
        except _TEMPLATE_FAULTS as error:
            raise TemplateError(f"{type(error).__name__}: {error}") from error

    def _end_of_turn(self, tail: str) -> str:
        """Up to the first added token behind an answer: `<|im_end|>` of `<|im_end|>\\n`; else EOS."""
        added = [t.content for t in self._tokenizer.added_tokens_decoder.values() if not t.content.isspace()]
        ends = [tail.find(token) + len(token) for token in added if token in tail]
        return tail[: min(ends)] if ends else tail.rstrip() or self._eos

    @property
    def _eos(self) -> str:
        return self._tokenizer.eos_token or ""


def without_system(messages: Turns) -> list[Mapping[str, str]]:
    """A system turn moved to the head of the user turn behind it, or turned into one."""
    system, *rest = messages
    if rest and rest[0]["role"] == "user":
        return [{"role": "user", "content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{"role": "user", "content": system["content"]}, *rest]


def _text(content: str) -> str:
    return content


def _parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]
