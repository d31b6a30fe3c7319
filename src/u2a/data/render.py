"""From a conversation to tokens: chat template, response, end of turn.

What is scored and trained is what generation sees. The prompt is rendered and tokenised as
`tokenizer.apply_chat_template(prompt, add_generation_prompt=True)` does it. The response follows it exactly
as it stands in the data (templates strip it, but the model wrote it so), then the template's end of turn;
the line break that many templates put behind that is left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from u2a.data.chat_template import PROBE, ChatTemplate
from u2a.types import Message, UserError

log = logging.getLogger("u2a")

TEMPLATES = ("auto", "none")

RENDERING = 2
"""Part of the cache key of tokenised rows: raise it when the same row and tokenizer give other tokens."""

_MARK = "\ufdd0"  # a Unicode noncharacter: reserved for use inside a program, never in text


class _Encoded(NamedTuple):
    input_ids: list[int]
    response_start: int
    prompt_cut: bool
    response_cut: bool


class Renderer:
    """Renders and tokenises a prompt and its response.

    With `template="auto"` the tokenizer's chat template is used, in transformers' own sandbox. Without one
    the plain template is `System: …`, `User: …` and `Assistant: …` turns, two line breaks apart, then the EOS
    token; other roles likewise. With `template="none"`, or an empty prompt, the contents stand raw, joined by
    a line break, and the EOS token follows.

    A template that refuses or leaves out a system turn gets it at the head of the first user turn; one that
    leaves out another turn is refused. A scaffold that the template writes before an answer (the empty
    `<think>` block of Qwen3) counts as prompt, unless the response brings its own.

    Special tokens spelled out in the data (`<|im_end|>`), and other added tokens that the template writes
    around turns, are tokenised as ordinary text, so that a row cannot forge a turn. Two exceptions: with
    `template="none"` they mean what they say, so that prompts rendered elsewhere can be used; and markers
    that are plain text for the tokenizer too (`[INST]` of some) cannot be told from the template's own.

    Args:
        tokenizer: any transformers tokenizer.
        template: `auto` or `none`.
        max_length: most tokens of prompt and response together, at least 2.

    Raises:
        UserError: an unknown template, or max_length under 2.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str = "auto", max_length: int = 512
    ) -> None:
        if template not in TEMPLATES:
            raise UserError(f"--template {template}: take one of {', '.join(TEMPLATES)}")
        if max_length < 2:
            raise UserError(f"--max-length {max_length}: a prompt and a response need at least 2 tokens")
        self.tokenizer: Any = tokenizer
        self.template = template
        self.max_length = max_length
        self._turns = ChatTemplate(tokenizer)

    # -- text ---------------------------------------------------------------------------------------------

    def render(self, prompt: Sequence[Message], response: str) -> tuple[str, str]:
        """The text before the response, and the response with its end of turn: what the model reads.

        Raises:
            UserError: the chat template refuses the conversation.
        """
        before, after = self._render(prompt, response)
        return before.replace(_MARK, ""), after.replace(_MARK, "")

    def _render(self, prompt: Sequence[Message], response: str, *, whole: bool = False) -> tuple[str, str]:
        """As `render`, with a mark inside each special token that the data spells out. `whole`: with all that
        the template writes behind an answer."""
        if self.template == "none" or not prompt:
            before = "\n".join(message["content"] for message in prompt)
            after = response.removesuffix(self._eos) + self._eos
            if self.template == "none" or not self._special.search(response):
                return before, after
            return before, self._marked(response.removesuffix(self._eos)) + self._eos
        frame = self._turns.frame
        marked = [{"role": m["role"], "content": self._marked(m["content"])} for m in prompt]
        before = self._turns.prompt(marked)
        own_scaffold = frame.scaffold and response.lstrip().startswith(frame.scaffold.split()[0])
        if not own_scaffold:
            before += frame.scaffold
        behind = frame.tail if whole else frame.end
        return before, frame.lead + self._marked(response.removesuffix(frame.end)) + behind

    @property
    def _eos(self) -> str:
        return self.tokenizer.eos_token or ""

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """What data must not forge: special tokens, and added ones that the template writes around turns."""
        frame = "" if self.template == "none" else self._turns.around_turns
        added = self.tokenizer.added_tokens_decoder.values()
        # not every added one: an answer may hold the `<think>` and `<tool_call>` that the model itself writes
        names = {t.content for t in added if t.special or (t.content.strip() and t.content in frame)}
        longest_first = sorted(filter(None, names), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _marked(self, text: str) -> str:
        """`text` with a mark behind the first character of each special token that it spells out."""
        return self._special.sub(lambda found: found[0][0] + _MARK + found[0][1:], text)

    # -- tokens -------------------------------------------------------------------------------------------

    def encode(self, prompt: Sequence[Message], response: str) -> tuple[list[int], int, bool]:
        """Tokens of prompt and response, where the response starts, and whether it was cut.

        At most `max_length` tokens. A long prompt loses tokens on its left, after a BOS token; at least one
        token stays before the response. The response loses tokens on its right only when it does not fit
        alone. With no prompt, a BOS token stands before the text, or where there is none the EOS token, which
        ends documents; without either, the first token of the text is the context of the others.
        """
        encoded = self._encode(prompt, response)
        return encoded.input_ids, encoded.response_start, encoded.response_cut

    def encode_prompt(self, prompt: Sequence[Message]) -> list[int]:
        """Tokens that generation starts from, the last `max_length` of them (a BOS token stays): those that
        `encode` has before the response.

        Raises:
            UserError: there are none, and the tokenizer has no token to begin with.
        """
        return left_cut(self._whole_prompt(prompt), self.max_length, self.tokenizer.bos_token_id)

    def encode_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
        """`encode_prompt` of each; how many were cut is logged."""
        whole = [self._whole_prompt(prompt) for prompt in prompts]
        if cut := sum(len(ids) > self.max_length for ids in whole):
            log.warning(
                "%d of %d prompts to be answered were cut on the left to --max-length %d",
                *(cut, len(whole), self.max_length),
            )
        return [left_cut(ids, self.max_length, self.tokenizer.bos_token_id) for ids in whole]

    def _whole_prompt(self, prompt: Sequence[Message]) -> list[int]:
        before, _ = self._render(prompt, "")
        ids = self._prompt_ids(before, prompt)
        if not ids:
            raise UserError(
                "nothing can be generated from an empty prompt: the tokenizer has no BOS or EOS token"
            )
        return ids

    def whole_ids(self, prompt: Sequence[Message], response: str) -> list[int]:
        """Tokens of a conversation as the chat template writes it with its last answer, line break behind the
        end of turn included, uncut: what a reward model was trained on, whose score stands at the last token.
        Special tokens that the data spells out are text here too. Without a template as `render`."""
        before, after = self._render(prompt, response, whole=True)
        return [*self._ids(before), *self._response_ids(before, after)]

    def _encode(self, prompt: Sequence[Message], response: str) -> _Encoded:
        before, after = self._render(prompt, response)
        prompt_ids = self._prompt_ids(before, prompt)
        response_ids = self._response_ids(before, after)
        if not prompt_ids:  # nothing could predict the first token
            prompt_ids, response_ids = response_ids[:1], response_ids[1:]
        kept = response_ids[: self.max_length - 1]
        cut = left_cut(prompt_ids, self.max_length - len(kept), self.tokenizer.bos_token_id)
        return _Encoded(cut + kept, len(cut), len(cut) < len(prompt_ids), len(kept) < len(response_ids))

    def _prompt_ids(self, before: str, prompt: Sequence[Message]) -> list[int]:
        if prompt and self.template == "auto" and self.tokenizer.chat_template is not None:
            return self._ids(before)
        bos = self.tokenizer.bos_token
        opening = self._opening if not (bos and before.startswith(bos)) else []
        return (opening + self._ids(before)) or self._beginning

    @property
    def _beginning(self) -> list[int]:
        """What a text without a prompt follows on."""
        known = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return [token for token in known if token is not None][:1]

    def _response_ids(self, before: str, after: str) -> list[int]:
        """Tokens of the marked text `after` where it follows `before`."""
        before = before.rpartition(_MARK)[2]
        first, *rest = after.split(_MARK)
        head, both = self._plain_ids(before), self._plain_ids(before + first)
        # When the two merge into one token, generation from the prompt could never produce it.
        ids = both[len(head) :] if both[: len(head)] == head else self._inner_ids(first)
        return [*ids, *(token for piece in rest for token in self._inner_ids(piece))]

    def _ids(self, text: str) -> list[int]:
        """Tokens of a marked text."""
        first, *rest = text.split(_MARK)
        return [*self._plain_ids(first), *(token for piece in rest for token in self._inner_ids(piece))]

    def _inner_ids(self, text: str) -> list[int]:
        """Tokens of a text that stands inside another one: sentencepiece puts no space before it then."""
        for anchor in ("\n", "~", "0"):
            head, both = self._plain_ids(anchor), self._plain_ids(anchor + text)
            if both[: len(head)] == head:
                return both[len(head) :]
        return self._plain_ids(text)

    def _plain_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []

    @cached_property
    def _opening(self) -> list[int]:
        """What the tokenizer itself puts before a text: `[bos_token_id]` or nothing."""
        bare, whole = self._plain_ids("a"), self.tokenizer("a")["input_ids"]
        starts = range(len(whole) - len(bare) + 1)
        return next((whole[:i] for i in starts if whole[i : i + len(bare)] == bare), [])

    @cached_property
    def fingerprint(self) -> str:
        """A hash that changes whenever the tokens of some row could."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            vocabulary: Any = self.tokenizer.get_vocab()
        else:
            # Padding and truncation are leftovers of earlier calls; they are overridden on every call.
            vocabulary = {
                k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")
            }
        # A template may print today's date: a rendered prompt shows it.
        rendered = self.render([{"role": "user", "content": "Hello"}], PROBE)
        specials = {k: str(v) for k, v in self.tokenizer.special_tokens_map.items()}
        version = RENDERING + (self.template == "auto" and self._turns.moves_system)  # they were lost before
        version += 2 * (self.tokenizer.bos_token_id is None)  # nothing stood before a text without a prompt
        parts = [version, vocabulary, specials, self.tokenizer.chat_template, self.template, rendered]
        text = json.dumps([*parts, self.max_length], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def left_cut(ids: list[int], room: int, bos: int | None) -> list[int]:
    """The last `room` ≥ 1 tokens; a BOS token keeps its place when there is room for another one."""
    if len(ids) <= room:
        return ids
    first = ids[:1] if room > 1 and ids[0] == bos else []
    return first + ids[len(ids) - room + len(first) :]


def is_cut_of(shorter: list[int], longer: list[int]) -> bool:
    """Whether `left_cut` left `shorter` of a prompt of which `longer` has more; a BOS token heads both."""
    return longer[len(longer) - len(shorter) + 1 :] == shorter[1:]
