"""A page on loopback: its files, the socket, the token, and an end."""

from __future__ import annotations

import secrets
import socket
from importlib import resources

import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response

from u2a import interruption
from u2a.served.guard import Guard
from u2a.types import UserError

LOOPBACK = "127.0.0.1"
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


class LocalPage:
    """`page.html` and `page.js` of a package, and what is added to `app`, for this machine's user alone.

    Args:
        package: where the two files are, such as `u2a.review`.
        port: 0 = one that is free.

    Raises:
        UserError: the port is taken, or not allowed.
    """

    def __init__(self, package: str, port: int = 0) -> None:
        self.app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self._serve_file("", package, "page.html")
        self._serve_file("page.js", package, "page.js")
        for name in ("request.js", "page.css"):
            self._serve_file(name, "u2a.served", name)
        self.app.post("/close")(self.stop)
        self.socket = _listening(port)
        address = f"{LOOPBACK}:{self.socket.getsockname()[1]}"
        token = secrets.token_urlsafe(32)
        self.address = f"http://{address}/{token}/"
        self._server = uvicorn.Server(
            uvicorn.Config(
                Guard(self.app, token, (address, address.replace(LOOPBACK, "localhost"))),
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                log_config=None,  # an access log would hold the token
                log_level="critical",
                access_log=False,
                timeout_graceful_shutdown=5,
            )
        )

    def _serve_file(self, path: str, package: str, name: str) -> None:
        content = (resources.files(package) / name).read_bytes()
        media_type = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
        self.app.get(f"/{path}")(lambda: Response(content, media_type=media_type))

    def run(self) -> None:
        """Serves until `stop`, the page's own button, SIGINT or SIGTERM."""
        with interruption.listening(quiet=True):  # the server raises its signal again when it is done
            self._server.run([self.socket])

    def stop(self) -> None:
        """Ends `run`, from any thread, after the answers that are under way."""
        self._server.should_exit = True


def _listening(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen()  # who comes before `run` waits
    except OSError as error:
        listener.close()
        raise UserError(f"--port {port}: {error.strerror}; take another, or 0 for one that is free") from None
    return listener
