"""What `u2a evaluate` keeps of each finished model, a file each, so that a run that was cut off goes on.

A model is finished although its judge has not answered: the figures of such a judge are measured again, from
the answers that are kept, by the run that goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2a.data.as_text import as_text
from u2a.data.digest import rows_digest
from u2a.runs.run_folder import write_json, write_text

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.evaluation.figure import Figure
    from u2a.evaluation.llm_judge import LLMJudge
    from u2a.evaluation.material import Prompts
    from u2a.evaluation.subject import Answer
    from u2a.problem import Task

log = logging.getLogger("u2a")

Answers = Mapping[str, "list[Answer]"]
"""By role of the prompts."""


@dataclass(frozen=True)
class Measured:
    """A finished model: its figures by name, what it answered, the log-probs of its own tokens by role, and
    which tokens it has (`Subject.vocabulary`)."""

    figures: dict[str, Figure]
    answers: Answers
    logprobs: Mapping[str, Sequence[float]]
    vocabulary: str

    @property
    def unanswered(self) -> dict[str, int]:
        """Figures of a judge -> how many of its requests have no answer, where some have none."""
        counts = {name: figure.counts.get("unanswered", 0) for name, figure in self.figures.items()}
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class Finished:
    """The folder of finished models; `names` are those of the run, in order, `marks` say on what rows and
    from which files each is measured: a model that was finished with another mark is measured again."""

    folder: Path
    names: tuple[str, ...]
    marks: Mapping[str, str]

    def write(self, name: str, measured: Measured) -> Measured:
        """Keeps a model's figures and answers, whole; gives them back."""
        kept: dict[str, Any] = {
            "model": name,
            "mark": self.marks[name],
            "figures": {key: figure.as_json() for key, figure in measured.figures.items()},
            "answers": {
                role: [answer._asdict() for answer in each] for role, each in measured.answers.items()
            },
            "logprobs": {role: list(s) for role, s in measured.logprobs.items()},
            "vocabulary": measured.vocabulary,
        }
        write_json(self._path(name), kept)
        return measured

    def read(self, name: str) -> Measured | None:
        """A finished model, None if it is not finished, or damaged, or of other rows or another model."""
        from u2a.evaluation.figure import figure_of_json
        from u2a.evaluation.subject import Answer

        path = self._path(name)
        if not path.is_file():
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["mark"] != self.marks[name]:
                log.warning("%s: the rows or the model changed since it was measured: measured again", name)
                return None
            return Measured(
                {key: figure_of_json(key, figure) for key, figure in kept["figures"].items()},
                {role: [Answer(**answer) for answer in each] for role, each in kept["answers"].items()},
                {role: [float(s) for s in each] for role, each in kept["logprobs"].items()},
                str(kept["vocabulary"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is damaged (%r): %s is measured again", path, error, name)
            return None

    def write_answers(self, path: Path, found: Mapping[str, Measured], prompts: Prompts) -> None:
        """Writes what every model answered, a line an answer, by role and place of the prompt.

        Args:
            prompts: what was asked, by role; the answers to a metric's own prompts stand without them.
        """
        asked = {role: [as_text(prompt) for prompt in each] for role, each in prompts.items()}
        lines = [
            json.dumps(
                {"model": model, "prompts": role, "prompt": place}
                | ({"asked": asked[role][place]} if role in asked else {})
                | answer._asdict()
            )
            for model, measured in found.items()
            for role, answers in measured.answers.items()
            for place, answer in enumerate(answers)
        ]
        if lines:
            write_text(path, "".join(line + "\n" for line in lines))

    def _path(self, name: str) -> Path:
        """By place, since a name may be a path."""
        return self.folder / f"{self.names.index(name):03d}.json"


def ask_again(
    judge: LLMJudge, found: Mapping[str, Measured], name: str, prompts: Prompts, task: Task
) -> Measured:
    """A finished model with the judge's figures measured again, from the answers of all; no model is loaded.

    Args:
        found: the finished models by name, the original first.
    """
    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Answered

    first = next(iter(found))
    original = None if name == first else Answered(first, found[first].answers)
    asked = Material(
        prompts=prompts.get("prompts"),
        unsafe_prompts=prompts.get("unsafe_prompts"),
        safe_prompts=prompts.get("safe_prompts"),
    )
    figures = judge.measure(Answered(name, found[name].answers, original, task), asked)
    return replace(
        found[name], figures={**found[name].figures, **{figure.name: figure for figure in figures}}
    )


def marks_of(names: Mapping[str, str], rows: Mapping[str, Dataset]) -> dict[str, str]:
    """Of each model, by name: its files and the original's, with size and time of change, and the rows."""
    digests = {role: rows_digest(each) for role, each in rows.items()}
    files = {name: _files(source) for name, source in names.items()}
    original = next(iter(files.values()))
    return {
        name: hashlib.sha256(json.dumps([digests, original, own]).encode()).hexdigest()
        for name, own in files.items()
    }


def _files(source: str) -> list[Any]:
    path = Path(source).expanduser()
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(each.name, each.stat()) for each in found if each.is_file()]
    return [source, *([name, state.st_size, state.st_mtime_ns] for name, state in states)]
