"""Sample answers of an `evaluate` run, the models' side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from u2a.report.record import parsed, read_file
from u2a.report.wording import shortened
from u2a.types import UserError

SAMPLES = 8
"""Most prompts of each role that are shown."""


@dataclass(frozen=True)
class Sample:
    """What every model answered to one prompt: its place in the file of its role, and texts by model.

    `asked` is the prompt's text; empty where the run did not keep it.
    """

    role: str
    prompt: int
    asked: str = ""
    texts: dict[str, str] = field(default_factory=dict)


def read_samples(run: Path, length: int) -> list[Sample]:
    """The first prompts of each role in `answers.jsonl`; none where there is no such file.

    Args:
        length: most characters of a prompt or an answer; what is longer is cut and says so.

    Raises:
        UserError: a line is not what a run writes.
    """
    path = run / "answers.jsonl"
    if not path.exists():
        return []
    found: dict[tuple[str, int], Sample] = {}
    for number, line in enumerate(read_file(path).split("\n"), start=1):
        if not line:
            continue
        try:
            answer = parsed(line)
            role, prompt = str(answer["prompts"]), int(answer["prompt"])
            model, text, asked = str(answer["model"]), str(answer["text"]), str(answer.get("asked", ""))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f"{path}, line {number}: not a line that a run writes ({error!r})") from None
        if prompt < SAMPLES:
            sample = found.setdefault((role, prompt), Sample(role, prompt, shortened(asked, length)))
            sample.texts[model] = shortened(text, length)
    return list(found.values())
