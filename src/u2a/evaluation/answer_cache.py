"""The file of a judge's answers: one whole line each, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from u2a.types import UserError

log = logging.getLogger("u2a")

BEGINNING = b'{"key": '
"""How every answer's line begins, in the file of a run that was cut off too."""


@dataclass(frozen=True)
class AnswerCache:
    """A JSONL file of `key` and `text`; need not exist yet."""

    path: Path

    def read(self) -> dict[str, str]:
        """Answers by key, without lines that are not whole: their requests are asked again.

        Raises:
            UserError: the file cannot be read, or is one of something else: what a judge says must not be
                added to it.
        """
        answers, broken = {}, 0
        with self._errors():
            lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        if lines and not lines[0].startswith(BEGINNING[: len(lines[0])] if len(lines) == 1 else BEGINNING):
            raise UserError(f"{self.path}, the judge's answers: it holds something else; name another file")
        for line in lines:
            try:
                entry = json.loads(line)
                answers[str(entry["key"])] = str(entry["text"])
            except (ValueError, TypeError, KeyError):
                broken += 1
        if broken:
            log.warning("%s: %d lines are not whole and are left out", self.path, broken)
        return answers

    def append(self, line: bytes) -> None:
        """Adds a line, behind a line end where an interrupted run left none; b"" only tries the file out.

        Raises:
            UserError: the file cannot be written.
        """
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                    line = b"\n" + line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())  # it was paid for

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}, the judge's answers: {error.strerror}; name a file") from None
