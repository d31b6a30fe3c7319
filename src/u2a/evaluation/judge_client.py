"""Asks a judge behind any OpenAI-compatible chat endpoint, with consent, and nothing twice.

Private text leaves the machine here: nothing is sent without `consent`. Answers are appended to a JSONL file
line by line, so an interrupted run goes on where it stopped. A single attempt, what it sends and what its
failure means, is `judge_connection`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from u2a.evaluation.answer_cache import AnswerCache
from u2a.evaluation.endpoint import key_in, on_this_machine, usable_key, whereabouts
from u2a.evaluation.judge_connection import JudgeConnection, NoAnswer, package, without
from u2a.types import Message, UserError

log = logging.getLogger("u2a")

Requests = Mapping[str, Sequence[Message]]
"""Name -> conversation."""
SAMPLING = {"temperature": 0, "seed": 0, "max_tokens": 1024}
"""As repeatable as endpoints get; what a model refuses of these is left out, or has another name
(`judge_connection.REFUSABLE`)."""
BYTES_PER_TOKEN = 4
"""UTF-8 bytes a token, for estimates: about right for English."""
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


@dataclass
class JudgeClient:
    """A judge and the answers that it has given so far.

    Args:
        base_url: of the endpoint, without `/chat/completions`, such as `http://localhost:8000/v1`.
        model: as the endpoint names it.
        cache: JSONL file of answers; holds the judge's words and hashes of the requests, no request, no key.
        key_variable: environment variable that holds the key; unset = the server needs none.
        sampling: sent with every request; an answer to other options is another answer. What the server
            refuses of it by name is sent no more.
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
        self._sent = dict(self.sampling)
        self._accepted = False
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

    def kept(self) -> int:
        """How many answers are in the cache: whoever asks for them again sends nothing."""
        return len(self._kept.read())

    def check(self) -> None:
        """Looks for what would keep every request from being answered. Sends nothing.

        Raises:
            UserError: the `openai` package is missing; the key is, for a judge on another machine, or cannot
                be one; the cache cannot be read.
        """
        package()
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
                        text = await self._adapted(connection, client, messages)
                        self._kept.append(json.dumps({"key": key, "text": text}).encode() + b"\n")
                        answers[key], in_a_row, self._accepted = text, 0, True
                    except NoAnswer as none:
                        if none.words and not self._accepted:
                            none.reason += f"; the server says: {none.words}"
                            none.stop = True
                        failed[key] = none.reason
                        in_a_row += none.faulty or not self._accepted
                        stop = none.reason if none.stop or in_a_row >= GIVE_UP else stop
            if progress:
                progress(1)

        connection = self._connection()
        async with connection.open() as client:
            rest = dict(new)
            if not self._accepted:  # one alone, the shortest: what is wrong with it is wrong with all
                first = min(rest, key=lambda key: sum(len(turn["content"]) for turn in rest[key]))
                await one(first, rest.pop(first))
            await asyncio.gather(*(one(key, messages) for key, messages in rest.items()))
        return failed

    async def _adapted(self, connection: JudgeConnection, client: Any, messages: Sequence[Message]) -> str:
        """A reply, if need be without the sampling options that the server refuses, each left out once."""
        while True:
            sent = self._sent
            try:
                return await self._persist(partial(connection.attempt, client, messages, sent))
            except NoAnswer as none:
                if not none.option:
                    raise
                if self._sent is sent:
                    log.info("judge: %s is refused and sent no more", none.option)
                    self._sent = without(sent, none.option)

    async def _persist(self, attempted: Callable[[], Awaitable[str]]) -> str:
        attempt = 1
        while True:
            try:
                return await attempted()
            except NoAnswer as none:
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

    def _connection(self) -> JudgeConnection:
        return JudgeConnection(self.base_url, self.model, self.key_variable, self.timeout, self._local)

    def _unanswered(self, requests: Requests, answers: Mapping[str, str]) -> dict[str, Sequence[Message]]:
        """Conversations to send, by key."""
        keyed = {self.key_of(messages): messages for messages in requests.values()}
        return {key: messages for key, messages in keyed.items() if key not in answers}
