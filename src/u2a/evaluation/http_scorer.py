"""Scores from a server of one's own: prompts and answers go there in full, with consent; numbers come back.

    POST {"items": [{"prompt": [{"role": "user", "content": "…"}, …], "response": "…"}, …]}
    200  {"scores": [0.25, …]}      one finite number an item, in the items' order; higher is better

The key, where there is one, is sent as `Authorization: Bearer …`. Reasons of failures are made of status
codes, never of what the server wrote.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from u2a.evaluation.endpoint import AGAIN, key_in, on_this_machine, retry_after, usable_key, whereabouts
from u2a.evaluation.figure import Array
from u2a.types import Message, UserError

BATCH = 16
"""Items of one request."""
LARGEST_REPLY = 1 << 20
"""Bytes; a longer reply is no list of `BATCH` numbers."""
_CHUNK = 1 << 16


class _NoReply(Exception):  # noqa: N818 - most are followed by another attempt
    """An attempt without a reply. `again`: the next may have one, in `wait` s."""

    def __init__(self, reason: str, *, again: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.again, self.wait = reason, again, wait


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """What was agreed to was this address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the status of the redirection becomes an error."""


@dataclass
class HttpScorer:
    """A scorer behind an address, and the scores that it has given so far.

    Args:
        url: takes the requests as it is.
        consent: without it nothing is sent.
        key_variable: environment variable that holds the key; "" or unset = none is sent.
        timeout: seconds for an attempt, from the connection to the reply's last byte.
        attempts: at most so many a request.
        backoff: seconds before the second attempt, doubled before each further one.
        longest_wait: seconds; a server that asks to wait longer has failed.

    Raises:
        UserError: the URL is none, or holds more than an address.
    """

    url: str
    consent: bool = False
    key_variable: str = ""
    timeout: float = 60.0
    attempts: int = 5
    backoff: float = 1.0
    longest_wait: float = 60.0
    _known: dict[str, float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._local = on_this_machine(self.url, "scorer")

    def __call__(
        self,
        prompts: Sequence[list[Message]],
        answers: Sequence[str],
        progress: Callable[[int], None] | None = None,
    ) -> Array:
        """Scores (N,) of answers to prompts, in the scorer's own unit, higher = better.

        Equal items are sent once, in this call and in later ones. `progress` hears how many are scored.

        Raises:
            UserError: something would have to be sent without `consent`; the key cannot be one; the server
                does not answer; its scores are not one finite number an item (names the prompt's place).
            ValueError: not as many answers as prompts.
        """
        items = [{"prompt": list(p), "response": a} for p, a in zip(prompts, answers, strict=True)]
        keys = [hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest() for item in items]
        first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in self._known}
        places = sorted(first.values())
        if places and not self.consent:
            raise UserError(
                f"nothing was sent to the scorer; --send-to-scorer allows it\n{self.describe(len(places))}"
            )
        for begin in range(0, len(places), BATCH):
            part = places[begin : begin + BATCH]
            scores = _checked(self._persist([items[place] for place in part]), part)
            self._known.update(zip((keys[place] for place in part), scores, strict=True))
            if progress:
                progress(len(part))
        return np.array([self._known[key] for key in keys], np.float64)

    def describe(self, items: int) -> str:
        """Where so many items would go, and with which key. Sends nothing."""
        held = key_in(self.key_variable)
        return (
            f"scorer: {self.url} ({whereabouts(self.url, self._local)})\n"
            f"to send: at most {items:,} prompts with an answer each, in full, in "
            f"{math.ceil(items / BATCH):,} requests\n"
            f"key: {f'the one in ${self.key_variable}' if held else 'none'}"
        )

    def check(self) -> None:
        """With consent, has one item scored that is nobody's text: a greeting, answered by a greeting.

        Raises:
            UserError: as a call; or the variable for the key is named and not set.
        """
        if self.key_variable and not usable_key(self.key_variable):
            raise UserError(
                f"the environment variable {self.key_variable} is not set: it holds the scorer's key"
            )
        if self.consent:
            self([[{"role": "user", "content": "Hello."}]], ["Hello."])

    def _persist(self, items: list[dict[str, Any]]) -> Any:
        body, attempt = json.dumps({"items": items}).encode(), 1
        while True:
            try:
                return _within(self.timeout, lambda: self._attempt(body))
            except _NoReply as none:
                if none.wait > self.longest_wait or not none.again or attempt >= self.attempts:
                    reason = none.reason + (f" ({attempt} attempts)" if attempt > 1 else "")
                    raise UserError(f"the scorer at {self.url} gave no scores: {reason}") from None
                wait = max(none.wait, min(self.backoff * 2 ** (attempt - 1), self.longest_wait))
            time.sleep(wait)
            attempt += 1

    def _attempt(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := usable_key(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        # no proxy for a scorer on this machine: its text must stay here
        proxies = urllib.request.ProxyHandler({} if self._local else None)
        opener = urllib.request.build_opener(_NoRedirection, proxies)
        request = urllib.request.Request(self.url, body, headers)
        try:
            with opener.open(request, timeout=self.timeout) as reply:
                return json.loads(_read(reply, time.monotonic() + self.timeout), parse_int=float)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error) from None
        except TimeoutError:
            raise _NoReply(f"no answer within {self.timeout:g} s", again=True) from None
        except (OSError, http.client.HTTPException):
            raise _NoReply("no connection, or it was cut", again=True) from None
        except (ValueError, RecursionError):
            raise _NoReply("the reply is no JSON", again=True) from None


def _within(seconds: float, attempt: Callable[[], Any]) -> Any:
    """What an attempt gives, if it does so in time: a timeout of a connection is about one read of it, and a
    server may send its headers a byte at a time.

    One that is late is left alone in its thread, which ends with its connection and holds no process.
    """
    ended: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            ended.append((True, attempt()))
        except BaseException as error:
            ended.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise _NoReply(f"no answer within {seconds:g} s", again=True)
    well, found = ended[0]
    if not well:
        raise found
    return found


def _read(reply: http.client.HTTPResponse, until: float) -> bytes:
    found = bytearray()
    while chunk := reply.read1(_CHUNK):
        found += chunk
        if len(found) > LARGEST_REPLY:
            raise _NoReply(f"the reply is longer than {LARGEST_REPLY:,} bytes")
        if time.monotonic() > until:
            raise TimeoutError
    return bytes(found)


def _refusal(error: urllib.error.HTTPError) -> _NoReply:
    reason = f"HTTP {error.code}"
    if error.code < 400:
        reason += ": a redirection, which is not followed"
    wait = retry_after({name.lower(): value for name, value in error.headers.items()})
    return _NoReply(reason, again=error.code in AGAIN or error.code >= 500, wait=wait)


def _checked(reply: Any, places: Sequence[int]) -> list[float]:
    """The scores in a reply for the answers to the prompts at these places."""
    found = reply.get("scores") if isinstance(reply, dict) else None
    if not isinstance(found, list):
        raise UserError('the scorer\'s reply is no JSON object with a list "scores"')
    if len(found) != len(places):
        raise UserError(
            f"the scorer gave {len(found)} scores for {len(places)} answers, to prompts {places[0]} to "
            f"{places[-1]}"
        )
    for place, score in zip(places, found, strict=True):
        if not isinstance(score, float) or not math.isfinite(score):
            raise UserError(f"the scorer's score of the answer to prompt {place} is no finite number")
    return found
