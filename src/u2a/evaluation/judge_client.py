"""Asks a judge behind any OpenAI-compatible chat endpoint, with consent, and nothing twice.

Private text leaves the machine here: nothing is sent without `consent`. The key is read from the environment
when requests go out and is kept nowhere; reasons of failures are made of status codes, never of what a server
wrote. Answers are appended to a JSONL file line by line, so an interrupted run goes on where it stopped.
Needs the extra `judge` (the `openai` package); that package's own retries are off, so that ours are counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from u2a.evaluation.answer_cache import AnswerCache
from u2a.evaluation.endpoint import (
    AGAIN,
    TooMuch,
    key_in,
    on_this_machine,
    read_bounded,
    retry_after,
    usable_key,
    whereabouts,
)
from u2a.types import Message, UserError

log = logging.getLogger("u2a")

Requests = Mapping[str, Sequence[Message]]
"""Name -> conversation."""
SAMPLING = {"temperature": 0, "seed": 0, "max_tokens": 1024}
"""As repeatable as endpoints get; one that refuses an option of these needs others."""
BYTES_PER_TOKEN = 4
"""UTF-8 bytes a token, for estimates: about right for English."""
LARGEST_REPLY = 1 << 22
"""Bytes; `max_tokens` of text are some thousands."""
GIVE_UP = 10
"""Requests in a row that fail for want of a working server before the rest is not sent."""


@dataclass
class Counts:
    """`asked`: requests sent, however often. `cached`: requests answered without sending, from the file or by
    an equal request. `retried`: attempts after a request's first. `failed`: requests without an answer."""

    asked: int = 0
    cached: int = 0
    retried: int = 0
    failed: int = 0


class _NoAnswer(Exception):  # noqa: N818 - most are followed by another attempt
    """An attempt without an answer. `again`: the next may have one, in `wait` s; `stop`: no request will."""

    def __init__(self, reason: str, *, again: bool = False, wait: float = 0.0, stop: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.again, self.wait, self.stop = reason, again, wait, stop


@dataclass
class JudgeClient:
    """A judge and the answers that it has given so far.

    Args:
        base_url: of the endpoint, without `/chat/completions`, such as `http://localhost:8000/v1`.
        model: as the endpoint names it.
        cache: JSONL file of answers; holds the judge's words and hashes of the requests, no request, no key.
        key_variable: environment variable that holds the key; unset = the server needs none.
        sampling: sent with every request as it is; an answer to other options is another answer.
        concurrency: requests under way at once.
        timeout: seconds for one attempt, from connecting to the last byte.
        attempts: at most so many a request.
        backoff: seconds before the second attempt, doubled (± a quarter) before each further one.
        longest_wait: seconds; a server that asks to wait longer has failed.
        price_in, price_out: money per million tokens, in any currency; None = unknown.

    `counts` and `failures` (name of the request -> why) add up over all calls of `ask`.

    Raises:
        UserError: an option is out of range; the URL is none, or holds more than an address.
    """

    base_url: str
    model: str
    cache: Path
    key_variable: str = "OPENAI_API_KEY"
    sampling: Mapping[str, Any] = field(default_factory=SAMPLING.copy)
    concurrency: int = 8
    timeout: float = 60.0
    attempts: int = 5
    backoff: float = 1.0
    longest_wait: float = 60.0
    price_in: float | None = None
    price_out: float | None = None
    counts: Counts = field(default_factory=Counts)
    failures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base_url = self.base_url.rstrip("/")
        self._kept = AnswerCache(self.cache)
        self._local = on_this_machine(self.base_url, "judge")
        for name in ("concurrency", "attempts", "timeout", "longest_wait"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} of the judge must be above 0: {getattr(self, name)}")
        for name in ("backoff", "price_in", "price_out"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise UserError(f"{name} of the judge must be 0 or more: {getattr(self, name)}")

    def describe(self, requests: Requests) -> str:
        """Where the requests would go, how many are not in the cache, their tokens, the cost. Sends nothing.

        Tokens in are estimated by `BYTES_PER_TOKEN`; tokens out are the limit that `sampling` sets.
        """
        new = self._unanswered(requests, self._kept.read())
        size = sum(len(m["content"].encode("utf-8", "replace")) for r in new.values() for m in r)
        tokens_in = math.ceil(size / BYTES_PER_TOKEN)
        limit = self.sampling.get("max_completion_tokens", self.sampling.get("max_tokens"))
        out = "any number" if limit is None else f"at most {limit * len(new):,}"
        cost = "unknown (give both prices per million tokens, and a limit of tokens)"
        if self.price_in is not None and self.price_out is not None and limit is not None:
            most = (tokens_in * self.price_in + limit * len(new) * self.price_out) / 1e6
            cost = f"at most about {most:,.4f} in the currency of the prices, retries aside"
        return (
            f"judge: {self.model} at {self.base_url} ({whereabouts(self.base_url, self._local)})\n"
            f"to send: {len(new):,} requests, with prompts and answers in full ({len(requests) - len(new):,} "
            f"more need no sending)\n"
            f"tokens: about {tokens_in:,} in, {out} out\n"
            f"cost: {cost}\n"
            f"key: {'the one in' if key_in(self.key_variable) else 'none, nothing in'} ${self.key_variable}"
        )

    def check(self) -> None:
        """Looks for what would keep every request from being answered. Sends nothing.

        Raises:
            UserError: the `openai` package is missing; the key is, for a judge on another machine, or cannot
                be one; the cache cannot be read.
        """
        _package()
        if not usable_key(self.key_variable) and not self._local:
            raise UserError(
                f"the environment variable {self.key_variable} is not set: it holds the key for "
                f"{self.base_url} (any word where none is needed); --judge-key-variable names another"
            )
        self._kept.read()

    def ask(
        self, requests: Requests, *, consent: bool = False, progress: Callable[[int], None] | None = None
    ) -> dict[str, str | None]:
        """The judge's reply to each conversation, by name; None = failed for good, `failures` says why.

        Names stand in `failures` and the log: no text of rows belongs in them. Equal conversations are sent
        once. `progress` hears 1 for each request that is done with.

        Raises:
            UserError: something would have to be sent without `consent`; the `openai` package is missing; the
                key cannot be one; the cache cannot be read or written.
            RuntimeError: this thread runs an event loop (a notebook): use `asyncio.to_thread(client.ask, …)`.
        """
        answers = self._kept.read()
        new = self._unanswered(requests, answers)
        reasons: dict[str, str] = {}
        if new:
            if not consent:
                about = self.describe(requests)
                raise UserError(f"nothing was sent to the judge; --send-to-judge allows it\n{about}")
            self._kept.append(b"")
            reasons = asyncio.run(self._ask_all(new, answers, progress))
        replies = {name: answers.get(self.key_of(messages)) for name, messages in requests.items()}
        failed = {name: reasons[self.key_of(requests[name])] for name in requests if replies[name] is None}
        self.counts.cached += len(requests) - len(failed) - sum(key in answers for key in new)
        self.counts.failed += len(failed)
        self.failures.update(failed)
        for name, reason in list(failed.items())[:1]:
            log.warning("judge: %d of %d failed, such as %s: %s", len(failed), len(requests), name, reason)
        return replies

    def key_of(self, messages: Sequence[Message]) -> str:
        """What an answer is kept under: the SHA-256 of base URL, model, messages and sampling options."""
        what = [self.base_url, self.model, list(messages), dict(self.sampling)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    async def _ask_all(
        self, new: Requests, answers: dict[str, str], progress: Callable[[int], None] | None
    ) -> dict[str, str]:
        """Adds to `answers`, by key; gives why each other key has none."""
        failed: dict[str, str] = {}
        stop, in_a_row, limit = "", 0, asyncio.Semaphore(self.concurrency)

        async def one(key: str, messages: Sequence[Message]) -> None:
            nonlocal stop, in_a_row
            async with limit:
                if stop:
                    failed[key] = f"not sent: {stop}"
                else:
                    self.counts.asked += 1
                    try:
                        text = await self._persist(client, messages)
                        self._kept.append(json.dumps({"key": key, "text": text}).encode() + b"\n")
                        answers[key], in_a_row = text, 0
                    except _NoAnswer as none:
                        failed[key] = none.reason
                        in_a_row += none.again
                        stop = none.reason if none.stop or in_a_row >= GIVE_UP else stop
            if progress:
                progress(1)

        async with self._connection() as client:
            await asyncio.gather(*(one(key, messages) for key, messages in new.items()))
        return failed

    async def _persist(self, client: Any, messages: Sequence[Message]) -> str:
        attempt = 1
        while True:
            try:
                return await self._attempt(client, messages)
            except _NoAnswer as none:
                too_long = none.wait > self.longest_wait
                if too_long or not none.again or attempt >= self.attempts:
                    none.reason += f", asks to wait {none.wait:.0f} s" if too_long else ""
                    none.reason += f" ({attempt} attempts)" if attempt > 1 else ""
                    raise
                pause = self.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
                wait = max(none.wait, min(pause, self.longest_wait))
            await asyncio.sleep(wait)
            attempt += 1
            self.counts.retried += 1

    async def _attempt(self, client: Any, messages: Sequence[Message]) -> str:
        import openai

        call = client.chat.completions.with_raw_response.create(
            model=self.model, messages=list(messages), extra_body=dict(self.sampling)
        )
        try:
            # the client's own timeout is one of each read: a server that drips would never meet it
            return _answer_text((await asyncio.wait_for(call, self.timeout)).content)
        except (asyncio.TimeoutError, openai.APITimeoutError):
            raise _NoAnswer(f"no answer within {self.timeout:g} s", again=True) from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except TooMuch as error:
            raise _NoAnswer(str(error)) from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, TooMuch):
                raise _NoAnswer(str(error.__cause__)) from None
            raise _NoAnswer("no connection, or it was cut", again=True) from None
        except (openai.OpenAIError, UnicodeError) as error:
            raise _NoAnswer(f"the request could not be made ({type(error).__name__})") from None

    def _refusal(self, error: Any) -> _NoAnswer:
        """Of an HTTP status; of the body only a code such as `context_length_exceeded` is ever shown."""
        status, code, key = error.status_code, str(error.code or ""), key_in(self.key_variable)
        shown = re.fullmatch(r"[a-z_]{1,40}", code) and not (key and key in code)
        reason = f"HTTP {status}" + (f" ({code})" if shown else "")
        if status == 401:
            reason += f": the key in ${self.key_variable} is " + ("not accepted" if key else "not set")
        elif status == 404:
            reason += f": no such address, or no model {self.model} there"
        elif status < 400:  # another host than the one that was agreed to
            reason += ": a redirection, which is not followed"
        again, stop = status in AGAIN or status >= 500, status in (401, 404) or status < 400
        return _NoAnswer(reason, again=again, wait=retry_after(error.response.headers), stop=stop)

    def _connection(self) -> Any:
        openai, key = _package(), usable_key(self.key_variable)
        # no proxy for a judge on this machine: its text must stay here
        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False,
            timeout=self.timeout,
            trust_env=not self._local,
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [partial(read_bounded, most=LARGEST_REPLY)]},
        )
        return openai.AsyncOpenAI(
            api_key=key or "none", base_url=self.base_url, max_retries=0, http_client=http
        )

    def _unanswered(self, requests: Requests, answers: Mapping[str, str]) -> dict[str, Sequence[Message]]:
        """Conversations to send, by key."""
        keyed = {self.key_of(messages): messages for messages in requests.values()}
        return {key: messages for key, messages in keyed.items() if key not in answers}


def _package() -> Any:
    try:
        import openai
    except ImportError:
        raise UserError("a judge needs the openai package: pip install 'u2a[judge]'") from None
    return openai


def _answer_text(body: bytes) -> str:
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError):
        raise _NoAnswer("the reply is no JSON", again=True) from None
    except (LookupError, TypeError):
        raise _NoAnswer("the reply is no chat completion", again=True) from None
    if not isinstance(text, str):
        raise _NoAnswer("the reply holds no text")
    return text
