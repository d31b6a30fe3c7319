"""What stands before a page that is served on loopback: who may ask, and what a browser may do with answers.

Any program and any web page on this machine can reach a port on loopback. So every request must have the
secret token of the address, which only its user has seen, and the `Host` that was served, which a page of
another name that was rebound to 127.0.0.1 has not. Nothing is in cookies, which all ports of a host share.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import Any

log = logging.getLogger("u2a")

LARGEST_BODY = 1 << 20
"""Bytes of a request's body."""
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every answer: the page loads nothing but its own, nobody frames it, nothing of it is kept."""

_ENCODED_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """An ASGI application that lets through to `app` what comes from the page's own user.

    Args:
        app: sees paths without the token.
        token: the first part of every path.
        hosts: accepted `Host` headers, each with the port.
    """

    def __init__(self, app: Any, token: str, hosts: tuple[str, ...]) -> None:
        self.app, self.token, self.hosts = app, token, hosts

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answers one request."""
        if scope["type"] != "http":  # no web sockets
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        _, given, rest = f"{scope['path']}//".split("/", 2)
        refusal = self._refusal(scope["method"], given, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        path = f"/{rest.removesuffix('//')}"
        begun = False

        async def send_guarded(message: dict[str, Any]) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_ENCODED_HEADERS]
            await send(message)

        try:
            await self.app({**scope, "path": path, "raw_path": path.encode()}, receive, send_guarded)
        except Exception as error:
            # not the words of the error: they may hold a row's text
            log.error("a request to %s failed: %s", path, type(error).__name__)
            if not begun:
                await _answer(send, 500, "u2a could not do this; the terminal says why")

    def _refusal(self, method: str, given: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Status and words for a request that is not let through."""
        host = headers.get("host", "")
        if host not in self.hosts:
            return 403, "this page is served for 127.0.0.1 alone"
        if not secrets.compare_digest(given.encode("utf-8", "replace"), self.token.encode()):
            return 403, "wrong or missing token: open the address that u2a printed"
        site = headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none") and headers.get("sec-fetch-mode") != "navigate":
            return 403, "only the page itself may ask"
        if method in ("GET", "HEAD"):
            return None
        if headers.get("origin") != f"http://{host}":
            return 403, "only the page itself may change anything"
        if headers.get("content-type", "").partition(";")[0] != "application/json":
            return 415, "JSON is wanted"
        length = headers.get("content-length", "")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            return 413, f"at most {LARGEST_BODY:,} bytes, and their number in Content-Length"
        return None


async def _answer(send: Any, status: int, words: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_ENCODED_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{words}\n".encode()})
