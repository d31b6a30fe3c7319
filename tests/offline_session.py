"""Commands in a process that has no network; started by tests/test_offline.py.

    python tests/offline_session.py FOLDER

Reads commands.json in FOLDER, command lines by name, and writes outcome.json beside it: exit status, output
and attempts to reach anybody, by name. Whatever Python code asks the operating system for a connection or a
name is refused and noted: an audit hook sees it however it was imported. Nothing heavy is imported before the
commands do it themselves, as on a shell.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}
"""Audit events of reaching out, and which of their arguments says whom."""
attempts: list[str] = []


def refuse(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: no connection and no name. Sockets that are files of this machine have no tuple for it."""
    if event not in EVENTS or (EVENTS[event] == 1 and not isinstance(args[1], tuple)):
        return
    frames = [frame for frame in traceback.extract_stack() if "site-packages" in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.name}" for frame in frames if "http" not in frame.filename]
    attempts.append(f"{event} {args[EVENTS[event]]!r} from {places[-4:]}")
    raise OSError("the network is off in this test")


def main(folder: Path) -> None:
    """Runs them all, in one process: loading torch takes longer than any of them."""
    sys.addaudithook(refuse)
    wait = time.sleep
    time.sleep = lambda seconds: wait(min(seconds, 0.05))  # the Hub's retries would take half a minute
    from typer.testing import CliRunner

    from u2a.cli import app

    outcome = {}
    for name, words in json.loads((folder / "commands.json").read_text()).items():
        attempts.clear()
        result = CliRunner().invoke(app, words)
        outcome[name] = {"status": result.exit_code, "output": result.output[-3000:], "attempts": [*attempts]}
    (folder / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
