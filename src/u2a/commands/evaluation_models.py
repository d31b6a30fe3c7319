"""What `u2a evaluate` keeps of each finished model, a file each, so that a run that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2a.runs import write_json, write_text
from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.evaluate.figure import Figure
    from u2a.evaluate.subject import Answer, Subject

Answers = Mapping[str, "list[Answer]"]
"""By role of the prompts."""


@dataclass(frozen=True)
class Measured:
    """A finished model: its figures by name, and what it answered."""

    figures: dict[str, Figure]
    answers: Answers


@dataclass(frozen=True)
class Finished:
    """The folder of finished models; `names` are those of the run, in order."""

    folder: Path
    names: tuple[str, ...]

    def write(self, subject: Subject, figures: Mapping[str, Figure]) -> Measured:
        """Keeps a model's figures and answers, whole."""
        answers = subject.all_answers
        kept: dict[str, Any] = {
            "model": subject.name,
            "figures": {name: figure.as_json() for name, figure in figures.items()},
            "answers": {role: [answer._asdict() for answer in each] for role, each in answers.items()},
        }
        write_json(self._path(subject.name), kept)
        return Measured(dict(figures), answers)

    def read(self, name: str) -> Measured | None:
        """A finished model, None if it is not finished.

        Raises:
            UserError: its file is not what a run writes.
        """
        from u2a.evaluate.figure import figure_of_json
        from u2a.evaluate.subject import Answer

        path = self._path(name)
        if not path.is_file():
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            return Measured(
                {key: figure_of_json(key, figure) for key, figure in kept["figures"].items()},
                {role: [Answer(**answer) for answer in each] for role, each in kept["answers"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not what u2a wrote ({error!r}); delete it") from None

    def write_answers(self, path: Path, found: Mapping[str, Measured]) -> None:
        """Writes what every model answered, a line an answer, by role and place of the prompt."""
        lines = [
            json.dumps({"model": model, "prompts": role, "prompt": place, **answer._asdict()})
            for model, measured in found.items()
            for role, answers in measured.answers.items()
            for place, answer in enumerate(answers)
        ]
        if lines:
            write_text(path, "".join(line + "\n" for line in lines))

    def _path(self, name: str) -> Path:
        """By place, since a name may be a path."""
        return self.folder / f"{self.names.index(name):03d}.json"
