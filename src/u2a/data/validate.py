"""Is the data usable: empty answers, duplicates, leakage between the roles, contradictions, over-long rows.

Texts are compared by hash after normalisation (Unicode NFKC, case folded, white space collapsed), so memory
grows with the number of rows, not with their length. Messages carry no row text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from datasets import Dataset

from u2a.data.formats import ANSWER_NAMES
from u2a.data.load import locate
from u2a.types import Message, UserError

CountTokens = Callable[[list[Message], str], int]
"""Prompt and response to their number of tokens together."""
Places = dict[bytes, int]
"""Hash to the position of the first row that has it."""

_ANSWERS = {
    "negatives": ("response",),
    "preferences": ("chosen", "rejected"),
    "test": ("chosen", "rejected"),
    "retain": ("response",),
}
"""The answer columns of every role."""
_GOOD = {"preferences": "chosen", "test": "chosen", "retain": "response"}
_LEAKS = (
    ("negatives", "preferences", "leak-validation"),
    ("negatives", "test", "leak-test"),
    ("preferences", "test", "leak-test"),
    ("retain", "preferences", "leak-validation"),
    ("retain", "test", "leak-test"),
)
"""Roles, and those whose prompts they must not hold."""
_BLOCK = 500


@dataclass(frozen=True)
class Finding:
    """One problem: `row` is 1-based in `file`; a `fatal` one makes a run impossible or meaningless."""

    file: str
    row: int
    kind: str
    message: str
    fatal: bool


def prompt_key(prompt: Sequence[Message]) -> bytes:
    """16 bytes equal for prompts equal up to case, white space and Unicode form; roles count."""
    return _digest(part for turn in prompt for part in (turn["role"], turn["content"]))


def row_key(row: Mapping[str, Any]) -> bytes:
    """32 bytes equal for rows whose `prompt` and `response` are equal up to the same."""
    return prompt_key(row["prompt"]) + _digest([row["response"]])


def check_data(
    negatives: Dataset | None = None,
    preferences: Dataset | None = None,
    test: Dataset | None = None,
    retain: Dataset | None = None,
    *,
    files: Mapping[str, str],
    token_limit: int | None,
    count_tokens: CountTokens | None,
) -> list[Finding]:
    """Check the data sets of `u2a.data.load` by themselves and against each other.

    Preferences and test may be prompts alone.

    `files` maps a role (`negatives`, `preferences` = validation, `test`, `retain`) to the name that findings
    give; rows of a folder are given with their own file. `too-long` is looked for only where both
    `token_limit` (tokens of prompt and answer together) and `count_tokens` are given.

    Returns:
        Findings by role, then by row. Kinds: `empty-response` (fatal), `duplicate` (prompt and answers of an
        earlier row), `leak-validation`, `leak-test` (the prompt is in that set also; looked for among the
        negatives, the retain rows and, for the test set, the validation pairs), `conflicting-label` (a
        negative that is also a good answer to the same prompt, or a pair that an earlier one turns round;
        fatal for a pair whose two answers are equal), `too-long`, `template` (fatal: the chat template
        refuses the conversation).
    """
    given = {"negatives": negatives, "preferences": preferences, "test": test, "retain": retain}
    tables = {
        role: _Table(role, rows, files.get(role, role)) for role, rows in given.items() if rows is not None
    }
    targets = {other for role, other, _ in _LEAKS if role in tables and other in tables}
    prompts = {role: tables[role].places(()) for role in targets}
    good = {
        role: tables[role].places((column,))
        for role, column in _GOOD.items()
        if role in tables and column in tables[role].columns and "negatives" in tables
    }
    findings: list[Finding] = []
    for role, table in tables.items():
        seen: Places = {}
        for row in table.rows():
            findings += _unusable(row)
            findings += _repeated(row, seen, table)
            findings += _leaks(row, prompts, tables)
            if role == "negatives":
                findings += _contradictions(row, good, tables)
            if token_limit is not None and count_tokens is not None:
                findings += _too_long(row, count_tokens, token_limit)
    return findings


@dataclass(frozen=True)
class _Row:
    """One row: its position `at` in the data set, its `number` (1-based) in `file`, its answers by column."""

    role: str
    at: int
    file: str
    number: int
    prompt: list[Message]
    answers: dict[str, str]

    def key(self, columns: Iterable[str]) -> bytes:
        """Hash of the prompt and the answers of `columns`."""
        return prompt_key(self.prompt) + _digest(self.answers[column] for column in columns)

    def finding(self, kind: str, message: str, *, fatal: bool = False) -> Finding:
        return Finding(self.file, self.number, kind, message, fatal)


@dataclass(frozen=True)
class _Table:
    role: str
    dataset: Dataset
    name: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Its answers; none where the rows are prompts alone."""
        return tuple(c for c in _ANSWERS[self.role] if c in self.dataset.column_names)

    def rows(self) -> Iterator[_Row]:
        columns = self.columns
        at = 0
        for block in self.dataset.select_columns(["source_row", "prompt", *columns]).iter(_BLOCK):
            for source_row, prompt, *answers in zip(*block.values(), strict=True):
                file, number = locate(self.dataset, source_row, self.name)
                yield _Row(self.role, at, file, number, prompt, dict(zip(columns, answers, strict=True)))
                at += 1

    def places(self, columns: tuple[str, ...]) -> Places:
        """Hashes of the prompts with the answers of `columns`."""
        places: Places = {}
        for row in self.rows():
            places.setdefault(row.key(columns), row.at)
        return places

    def place(self, at: int) -> str:
        file, number = locate(self.dataset, self.dataset[at]["source_row"], self.name)
        return f"{file}, row {number}"


def _unusable(row: _Row) -> list[Finding]:
    """Faults of a row that leave nothing to learn from it."""
    findings = [
        row.finding("empty-response", f"the {ANSWER_NAMES[column]} is empty; remove the row", fatal=True)
        for column, answer in row.answers.items()
        if not answer.strip()
    ]
    words = [answer.split() for answer in row.answers.values()]
    if len(words) == 2 and words[0] == words[1]:
        message = "the chosen and the rejected answer are the same, so the pair prefers nothing; remove it"
        findings.append(row.finding("conflicting-label", message, fatal=True))
    return findings


def _repeated(row: _Row, seen: Places, table: _Table) -> list[Finding]:
    """An earlier row of the same table says the same, or, of a pair, the opposite."""
    turned = seen.get(row.key(reversed(row.answers))) if len(row.answers) == 2 else None
    first = seen.setdefault(row.key(row.answers), row.at)
    if first != row.at:
        return [row.finding("duplicate", f"the same as {table.place(first)} and counts twice; remove one")]
    if turned is not None:
        message = f"{table.place(turned)} prefers the other of the same two answers; keep one"
        return [row.finding("conflicting-label", message)]
    return []


def _leaks(row: _Row, prompts: Mapping[str, Places], tables: Mapping[str, _Table]) -> list[Finding]:
    findings = []
    for role, other, kind in _LEAKS:
        at = prompts.get(other, {}).get(row.key(())) if row.role == role else None
        if at is not None:
            name = "test set" if other == "test" else "validation preferences"
            message = (
                f"its prompt is also in the {name} ({tables[other].place(at)}); remove it from one of them"
            )
            findings.append(row.finding(kind, message))
    return findings


def _contradictions(row: _Row, good: Mapping[str, Places], tables: Mapping[str, _Table]) -> list[Finding]:
    places = ((role, places.get(row.key(("response",)))) for role, places in good.items())
    return [
        row.finding(
            "conflicting-label", f"the same answer is a good one in {tables[role].place(at)}; keep one"
        )
        for role, at in places
        if at is not None
    ]


def _too_long(row: _Row, count_tokens: CountTokens, limit: int) -> list[Finding]:
    try:
        counts = {column: count_tokens(row.prompt, answer) for column, answer in row.answers.items()}
    except UserError as error:
        return [row.finding("template", str(error), fatal=True)]
    return [
        row.finding(
            "too-long",
            f"the prompt and the {ANSWER_NAMES[column]} have {count} tokens, over the limit of {limit}",
        )
        for column, count in counts.items()
        if count > limit
    ]


def _digest(parts: Iterable[str]) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        text = " ".join(unicodedata.normalize("NFKC", part).casefold().split()).encode()
        digest.update(len(text).to_bytes(8, "little") + text)  # the length keeps neighbours apart
    return digest.digest()
