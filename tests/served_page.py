"""A served page in a thread, and requests to it as any program on the machine could send them."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from u2a.served.page import LocalPage


class Reply(NamedTuple):
    """Status, headers (names in lower case) and body of an answer."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def served(page: LocalPage) -> Iterator[LocalPage]:
    """Serves the page until the block ends."""
    thread = threading.Thread(target=page.run, daemon=True)
    thread.start()
    try:
        yield page
    finally:
        page.stop()
        thread.join(20)
        assert not thread.is_alive()


def until(page: Any, condition: Callable[[], bool]) -> None:
    """Waits for what a page will show. `wait_for_function` needs eval, which the pages' policy forbids."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came"
        page.wait_for_timeout(50)


def has_ended(address: str) -> bool:
    """Whether nobody listens there any more."""
    try:
        socket.create_connection(("127.0.0.1", urlsplit(address).port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def send(
    page: LocalPage,
    path: str,
    body: Any = None,
    *,
    headers: dict[str, str] | None = None,
    root: str | None = None,
    method: str = "",
) -> Reply:
    """Sends one request; `root` stands for the address's path with the token, `headers` go before what a
    browser would send."""
    address = urlsplit(page.address)
    target = (address.path if root is None else root) + path
    given = {"Host": address.netloc}
    if body is not None:
        given |= {"Origin": f"http://{address.netloc}", "Content-Type": "application/json"}
    given = {name: value for name, value in (given | (headers or {})).items() if value}
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=20)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method or ("POST" if body is not None else "GET"), target, content, given)
        found = connection.getresponse()
        text = found.read().decode()
        return Reply(found.status, {name.lower(): value for name, value in found.getheaders()}, text)
    finally:
        connection.close()
