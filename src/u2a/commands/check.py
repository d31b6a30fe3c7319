"""`u2a check`: is my data usable?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from u2a.commands.terminal import give, printable, say
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.data.validate import Finding
    from u2a.types import Message

FEW = 5
"""Findings of a kind and file that are shown."""
ROLES = ("negatives", "preferences", "test", "retain")


def run(values: Mapping[str, Any]) -> int:
    """Prints findings by file and row; 1 when something is unusable, else 0."""
    from u2a.commands.session import findings_of

    files = {role: values[role] for role in ROLES if values[role]}
    if not files:
        raise UserError("nothing to check: give --negatives, --preferences, --test or --retain")
    data, unreadable = _read(files, values["objective"])
    count_tokens, limit = (None, None)
    if values["model"]:
        count_tokens, limit = _token_counter(values), values["max_length"]
    rows_of = [data.get(role) for role in ROLES]
    findings = unreadable + findings_of(
        values["objective"], *rows_of, files=files, token_limit=limit, count_tokens=count_tokens
    )
    for line in _lines(findings):
        say(line)
    if not values["model"]:
        say("Length was not checked: --model names the tokenizer that counts tokens.")
    for role, rows in data.items():
        say(f"{role}: {len(rows)} rows")
    unusable = sum(finding.fatal for finding in findings)
    give(
        findings=[asdict(finding) for finding in findings],
        rows={role: len(rows) for role, rows in data.items()},
        unusable=unusable,
    )
    say(f"{len(findings)} findings, {unusable} of them make rows unusable.", essential=True)
    return 1 if unusable else 0


def _read(files: Mapping[str, str], objective: str) -> tuple[dict[str, Dataset], list[Finding]]:
    """The rows of each role that can be read, and a finding for each row that cannot: other commands stop at
    the first of those, here all are wanted at once."""
    from u2a.commands.session import validation_role
    from u2a.data.canonical_rows import Unreadable
    from u2a.data.load import load_readable
    from u2a.data.validate import Finding

    kinds = {"preferences": validation_role(objective), "test": "preferences"}
    data, found = {}, list[Finding]()
    for role, source in files.items():
        unreadable: list[Unreadable] = []
        data[role] = load_readable(kinds.get(role, role), source, unreadable)
        found += [Finding(each.file, each.row, "unreadable", each.message, True) for each in unreadable]
    return data, list(dict.fromkeys(found))


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    """A line a finding; of a kind that a file has many of the first few, and how many more there are."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.file, finding.kind), []).append(finding)
    for (file, kind), alike in kinds.items():
        for finding in alike[:FEW]:
            mark = "unusable" if finding.fatal else "look at"
            yield f"{printable(file)}:{finding.row}: {mark}: {kind}: {printable(finding.message)}"
        if (more := len(alike) - FEW) > 0:
            yield f"{printable(file)}: {kind}: {more} more rows like these; --json names them all"


def _token_counter(values: Mapping[str, Any]) -> Callable[[list[Message], str], int]:
    from u2a.data.render import Renderer
    from u2a.models.loading import load_tokenizer
    from u2a.models.source import check_source

    model = values["model"]
    if model == "demo":
        from u2a.models.demo_model import demo_model  # with PEFT, which takes seconds

        model = str(demo_model())
    unlimited = 1 << 30
    source = check_source(model)
    renderer = Renderer(load_tokenizer(source), template=values["template"], max_length=unlimited)
    return lambda prompt, response: len(renderer.encode(prompt, response)[0])
