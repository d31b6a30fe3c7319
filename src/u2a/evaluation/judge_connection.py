"""One attempt to have a conversation judged: what is sent, what may come back, and what a failure means.

The key is read from the environment when requests go out and is kept nowhere; reasons of failures are made of
status codes. What a server wrote is in one alone, cut short and without the key: that of a 400 to the first
request, which ends the sending. Needs the extra `judge` (the `openai` package); that package's own retries
are off, so that ours are counted, and of the environment only the key goes out.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from u2a.evaluation.endpoint import AGAIN, TooMuch, key_in, read_bounded, retry_after, usable_key
from u2a.printable import printable
from u2a.types import Message, UserError

LARGEST_REPLY = 1 << 22
"""Bytes; `max_tokens` of text are some thousands."""
SENT = frozenset(
    (
        *("host", "accept", "accept-encoding", "connection", "content-length", "content-type", "user-agent"),
        "x-stainless-raw-response",  # the package reads it off its own request: how a reply is handed over
    )
)
"""Headers of a request beside the key. The package adds the machine's kind, and the organisation, project and
any other header that `OPENAI_…` variables name: not for every judge."""
LEAST_SECRET = 16
"""Characters. Shorter keys are words that servers without keys are given, such as `none`."""


WORDS = 300
"""Most characters of what a server wrote that are shown."""
OF_THE_TEXT = ("content_filter", "content_policy_violation", "context_length_exceeded", "invalid_prompt")
"""Codes of a 400 that is about the texts of one request."""
REFUSABLE = {"max_tokens": "max_completion_tokens", "temperature": "", "seed": ""}
"""Sampling option that some models refuse -> what they take for it; "" = they need none. OpenAI's reasoning
models (o-series, gpt-5) refuse `max_tokens`, and any temperature but their own."""


def without(sampling: Mapping[str, Any], option: str) -> dict[str, Any]:
    """The sampling options for a model that refuses one of them; with `max_tokens` goes the temperature."""
    left = {name: value for name, value in sampling.items() if name != option}
    if other := REFUSABLE[option]:
        left.pop("temperature", None)
        left[other] = sampling[option]
    return left


class NoAnswer(Exception):  # noqa: N818 - most are followed by another attempt
    """An attempt without an answer.

    `again`: the next may have one, in `wait` s; `faulty`: the server is at fault, not the request; `stop`: no
    request will have one; `option`: the sampling option that the server will not have; `words`: what it wrote
    of a request that it finds wrong, not of the texts in it.
    """

    again, wait, stop, option, words = False, 0.0, False, "", ""

    def __init__(self, reason: str, *, faulty: bool = False, **more: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        vars(self).update(more)
        self.faulty = faulty or self.again


@dataclass(frozen=True)
class JudgeConnection:
    """How a judge is reached; the arguments are those of `JudgeClient`, `local` = it is on this machine."""

    base_url: str
    model: str
    key_variable: str
    timeout: float
    local: bool

    def open(self) -> Any:
        """The package's client, an async context manager.

        Raises:
            UserError: the package is missing; the key cannot be one.
        """
        openai, key = package(), usable_key(self.key_variable) or "none"

        async def only_ours(request: Any) -> None:
            for name in set(request.headers) - SENT:
                del request.headers[name]
            request.headers["Authorization"] = f"Bearer {key}"

        # no proxy for a judge on this machine: its text must stay here
        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False,
            timeout=self.timeout,
            trust_env=not self.local,
            headers={"Accept-Encoding": "identity"},
            event_hooks={"request": [only_ours], "response": [partial(read_bounded, most=LARGEST_REPLY)]},
        )
        return openai.AsyncOpenAI(api_key=key, base_url=self.base_url, max_retries=0, http_client=http)

    async def attempt(self, client: Any, messages: Sequence[Message], sampling: Mapping[str, Any]) -> str:
        """The judge's reply, without the key where it repeats it.

        Raises:
            NoAnswer: there is none.
        """
        import openai

        call = client.chat.completions.with_raw_response.create(
            model=self.model, messages=list(messages), extra_body=dict(sampling)
        )
        try:
            # the client's own timeout is one of each read: a server that drips would never meet it
            text = _answer_text((await asyncio.wait_for(call, self.timeout)).content)
        except (asyncio.TimeoutError, openai.APITimeoutError):
            raise NoAnswer(f"no answer within {self.timeout:g} s", again=True) from None
        except openai.APIStatusError as error:
            raise self._refusal(error, sampling) from None
        except TooMuch as error:
            raise NoAnswer(str(error), faulty=True) from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, TooMuch):
                raise NoAnswer(str(error.__cause__), faulty=True) from None
            raise NoAnswer("no connection, or it was cut", again=True) from None
        except (openai.OpenAIError, UnicodeError) as error:
            raise NoAnswer(f"the request could not be made ({type(error).__name__})") from None
        key = key_in(self.key_variable)
        return text.replace(key, "[key]") if len(key) >= LEAST_SECRET else text

    def _refusal(self, error: Any, sampling: Mapping[str, Any]) -> NoAnswer:
        """Of an HTTP status; of the body a code such as `context_length_exceeded`, and `words` where the
        request itself is refused: by 400, or 422 of servers that check it field by field."""
        status, code, key = error.status_code, str(error.code or ""), key_in(self.key_variable)
        shown = re.fullmatch(r"[a-z_]{1,40}", code) and not (key and key in code)
        reason = f"HTTP {status}" + (f" ({code})" if shown else "")
        if status == 401:
            reason += f": the key in ${self.key_variable} is " + ("not accepted" if key else "not set")
        elif status == 404:
            reason += f": no such address, or no model {self.model} there"
        elif status < 400:  # another host than the one that was agreed to
            reason += ": a redirection, which is not followed"
        elif status == 402:
            reason += ": the account has nothing left"
        again, stop = status in AGAIN or status >= 500, status in (401, 402, 404) or status < 400
        option = words = ""
        if status in (400, 422) and code not in OF_THE_TEXT:
            words = _words(error, key) or "nothing"
            named = [name for name in REFUSABLE if name in sampling and _names(error, name)]
            option = named[0] if named else ""
        wait = retry_after(error.response.headers)
        return NoAnswer(reason, again=again, wait=wait, stop=stop, option=option, words=words)


def _names(error: Any, option: str) -> bool:
    """Whether a server's error is about this option: by its `param`, by the place of a `detail`, or in
    quotation marks in its message."""
    if any(option in detail["loc"] for detail in _details(error)):
        return True
    param = getattr(error, "param", None)
    return param == option or (not param and bool(re.search(rf"['\"`]{option}['\"`]", _message(error))))


def _message(error: Any) -> str:
    if details := _details(error):
        return "; ".join(f"{'.'.join(map(str, d['loc']))}: {d.get('msg', '')}" for d in details)
    body = error.body if isinstance(error.body, dict) else {}
    said = body.get("message") or body.get("detail") or ""
    return said if isinstance(said, str) else ""


def _details(error: Any) -> list[dict[str, Any]]:
    """What a server of FastAPI's kind finds wrong: objects with `loc`, a list, and `msg`. They stand under
    `detail`, or in that of `message` (Mistral's)."""
    body = error.body if isinstance(error.body, dict) else {}
    for holder in (body, body.get("message")):
        found = holder.get("detail") if isinstance(holder, dict) else None
        if isinstance(found, list):
            return [d for d in found if isinstance(d, dict) and isinstance(d.get("loc"), list)]
    return []


def _words(error: Any, key: str) -> str:
    """A server's message in one printable line, without the key."""
    line = " ".join(_message(error).split())
    return printable(line.replace(key, "[key]") if key else line)[:WORDS]


def package() -> Any:
    """`openai`.

    Raises:
        UserError: it is not installed; says how to.
    """
    try:
        import openai
    except ImportError:
        raise UserError("a judge needs the openai package: pip install 'u2a[judge]'") from None
    return openai


def _answer_text(body: bytes) -> str:
    """Of a chat completion; halves of characters, which JSON can hold and no file can, become `?`."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError):
        raise NoAnswer("the reply is no JSON", again=True) from None
    except (LookupError, TypeError):
        raise NoAnswer("the reply is no chat completion", again=True) from None
    if not isinstance(text, str):
        raise NoAnswer("the reply holds no text")
    return text.encode("utf-8", "replace").decode("utf-8")
