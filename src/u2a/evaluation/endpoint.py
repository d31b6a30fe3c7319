"""Servers that text is sent to: whose machine an address means, the key for it, and when to try again."""

from __future__ import annotations

import email.utils
import ipaddress
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from u2a.types import UserError

AGAIN = (408, 409, 425, 429)
"""HTTP statuses below 500 that may go better the next time; from 500 on all may."""


def on_this_machine(url: str, whose: str) -> bool:
    """Whether the host is this machine by its own name or number; names are not looked up.

    Args:
        whose: the server as errors call it, such as `judge`.

    Raises:
        UserError: the URL is none, or holds more than an address; it is not shown, for it may hold a key.
    """
    try:
        parts = urlsplit(url)
        host, right = parts.hostname or "", parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        host, right = "", False
    if not (host and right):
        raise UserError(f"the {whose}'s URL is none; give one such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(f"the {whose}'s URL holds more than an address; a key belongs in the environment")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def whereabouts(url: str, local: bool) -> str:
    """The machine in words, and whether others can read what goes there."""
    if local:
        return "this machine"
    return "another machine" + (", UNENCRYPTED" if url.startswith("http:") else "")


def key_in(variable: str) -> str:
    """The key that an environment variable holds; "" = none."""
    return os.environ.get(variable, "").strip()


def usable_key(variable: str) -> str:
    """As `key_in`.

    Raises:
        UserError: what the variable holds cannot stand in a header; it is not shown.
    """
    key = key_in(variable)
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {variable} holds no key: odd characters in it")
    return key


class TooMuch(Exception):  # noqa: N818 - what a server did, not what is wrong here
    """A reply that is not read to its end."""


async def read_bounded(response: Any, most: int) -> None:
    """Hook of an httpx client: reads a reply's body, whatever its status, before anything reads all of it.

    Raises:
        TooMuch: it is longer than `most` bytes, or compressed, so that a little could be very much.
    """
    body = bytearray()
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise TooMuch("the reply is compressed, which was not asked for")
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > most:
            raise TooMuch(f"the reply is longer than {most:,} bytes")
    response.encoding = "utf-8"  # a server's choice could be a compression, too
    response._content = bytes(body)  # as if the client itself had read it


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait (RFC 9110, 10.2.3: seconds or a date); 0 = it does not say.

    A date is counted from the server's own `Date`, where it sends one: this machine's clock may be wrong.
    Names of `headers` are in small letters, or their case does not matter to it.
    """
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(value).timestamp()
            now = headers.get("date")
            seconds = until - (email.utils.parsedate_to_datetime(now).timestamp() if now else time.time())
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if seconds == seconds else 0.0
