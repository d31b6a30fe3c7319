"""Servers on loopback that go wrong on demand: an OpenAI-compatible judge, and a scorer."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Replies to a question with what `script` has for it, in turn, then with what it `say`s: its echo."""

    daemon_threads = True
    request_queue_size = 64
    block_on_close = False

    def __init__(self, handler=None):
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.say = "echo {}".format
        self.script: dict[str, list[str]] = {}
        self.refused: dict[str, str] = {}  # sampling options, and what OpenAI's server says of them
        self.fields: dict[str, dict] = {}  # options refused by 422, and with what
        self.asked: list[tuple[str, float]] = []
        self.bodies: list[dict] = []
        self.keys: set[str | None] = set()
        self.headers: set[str] = set()
        self.under_way = self.most_under_way = 0
        self.delay = 0.0
        self.written = 0
        self.lock, self.over = threading.Lock(), threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def questions(self):
        return [question for question, _ in self.asked]

    def handle_error(self, *_):
        """A client that hangs up is no news."""


@contextmanager
def serving(server):
    """Serves in a thread until the block ends."""
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        """Somebody followed a redirection."""
        self.server.asked.append(("GET", time.monotonic()))
        self.reply("{}")

    def do_POST(self):
        self.body = body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question, server = self.question(), self.server
        with server.lock:
            server.asked.append((question, time.monotonic()))
            server.bodies.append(body)
            server.keys.add(self.headers["authorization"])
            server.headers |= {name.lower() for name in self.headers}
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            what = (server.script.get(question) or ["answer"]).pop(0)
        time.sleep(server.delay)
        with server.lock:
            server.under_way -= 1
        getattr(self, what.partition(" ")[0])(*what.split(" ")[1:] or [question])

    def question(self):
        return self.body["messages"][-1]["content"]

    def reply(self, body, status=200, **headers):
        data = body.encode()
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": len(data),
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, question):
        for option, says in self.server.refused.items():
            if option in self.body:
                error = {"message": says, "type": "invalid_request_error", "param": option}
                self.reply(json.dumps({"error": {**error, "code": "unsupported_parameter"}}), 400)
                return
        for option, body in self.server.fields.items():
            if option in self.body:
                self.reply(json.dumps(body), 422)
                return
        message = {"role": "assistant", "content": self.server.say(question)}
        self.reply(json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}))

    def status(self, status, wait=None, code="some_code"):
        headers = {} if wait is None else {"retry_after": wait}
        error = {"message": f"no: {self.headers['authorization']}", "code": code}
        self.reply(json.dumps({"error": error}), int(status), **headers)

    def later(self, seconds):
        """429 with the date to come back at."""
        self.reply("{}", 429, retry_after=formatdate(time.time() + int(seconds), usegmt=True))

    def slow(self, _):
        self.server.over.wait(5)

    def drip(self, _):
        """A byte now and then: no read ever waits for long."""
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "1000")
        self.end_headers()
        for _ in range(100):
            if self.server.over.wait(0.05):
                return
            self.wfile.write(b" ")
            self.wfile.flush()

    def drip_headers(self, _):
        """Likewise, before there is a status."""
        for _ in range(100):
            if self.server.over.wait(0.05):
                return
            self.wfile.write(b"H")
            self.wfile.flush()

    def endless(self, status=200):
        """As fast as it can, until the client hangs up."""
        self.send_response(int(status))
        self.send_header("content-type", "application/json")
        self.end_headers()
        while not self.server.over.is_set():
            self.wfile.write(b" " * 65_536)
            self.server.written += 65_536

    def packed(self, coding):
        data = gzip.compress(b" " * 10_000_000)
        self.send_response(200)
        self.send_header("content-encoding", coding)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def charset(self, name, status=200):
        message = {"role": "assistant", "content": self.server.say(self.question())}
        body = json.dumps({"choices": [{"message": message}]})
        self.reply(body, int(status), content_type=f"text/plain; charset={name}")

    def broken(self, _):
        self.reply('{"choices": [{"message": {"content": "echo')

    def page(self, _):
        self.reply("<html>echo</html>", content_type="text/html")

    def cut(self, _):
        self.send_response(200)
        self.send_header("content-length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [{"mess')

    def gone(self, _):
        self.connection.shutdown(socket.SHUT_RDWR)

    def schema(self, body):
        self.reply(body)

    def elsewhere(self, port, status=307):
        self.reply("", int(status), location=f"http://127.0.0.1:{port}/v1/chat/completions")

    def log_message(self, *_):
        """Says nothing."""


class Scorer(Server):
    """Scores an answer by its length; everything that it is asked is called `items`."""

    def __init__(self):
        super().__init__(ScoringHandler)
        self.score = lambda item: len(item["response"])

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/score"


class ScoringHandler(Handler):
    def question(self):
        return "items"

    def answer(self, _):
        self.reply(json.dumps({"scores": [self.server.score(item) for item in self.body["items"]]}))
