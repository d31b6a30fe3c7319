"""The rows of `u2a evaluate`: what is refused, which prompts a labelled file gives, and what overlaps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from u2a.commands.evaluation_runs import runs_of
from u2a.commands.held_out import prompt_keys, row_prompt_keys
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

CONTRAST = "contrast_"
"""How the types of XSTest's unsafe prompts begin."""


def refuse_empty(rows: Dataset, source: str) -> None:
    """Raises `UserError` at the first answer without a word: it has no tokens to measure."""
    from u2a.data.load import locate

    for column in ("response", "chosen", "rejected"):
        for at, answer in enumerate(rows[column] if column in rows.column_names else ()):
            if not answer.strip():
                file, row = locate(rows, rows[at]["source_row"], source)
                raise UserError(f"{file}, row {row}: `{column}` is empty; remove the row")


def labelled(prompts: Dataset, kind: str, source: str) -> Dataset:
    """Of a file with a column `label` of safe and unsafe, in any case, or with XSTest's column `type`, whose
    unsafe types begin with `contrast_`, the prompts of that kind; of any other file all.

    A `label` of true and false is KTO's, and about an answer.

    Raises:
        UserError: a row of such a file says neither; or none is of that kind.
    """
    from u2a.data.load import locate

    extras = [json.loads(extra) if extra else {} for extra in prompts["extra"]]
    if not all(isinstance(extra.get("label"), bool | None) for extra in extras):
        column = "label"
    elif any(str(extra.get("type")).startswith(CONTRAST) for extra in extras):
        column = "type"
    else:
        return prompts
    kept = []
    for at, extra in enumerate(extras):
        said = str(extra.get(column) or "").strip().lower()
        if column == "type" and said:
            said = "unsafe" if said.startswith(CONTRAST) else "safe"
        if said not in ("safe", "unsafe"):
            file, row = locate(prompts, prompts[at]["source_row"], source)
            raise UserError(
                f"{file}, row {row}: its `{column}` says neither safe nor unsafe; have it say so in every "
                "row, or remove the column"
            )
        if said == kind:
            kept.append(at)
    if not kept:
        raise UserError(f"{source}: no prompt is labelled {kind}")
    return prompts.select(kept)


def overlaps(by_role: Mapping[str, Dataset]) -> list[str]:
    """Warnings: held-out pairs that the models have met as negatives, and negatives that are held out too."""
    from u2a.data.validate import prompt_key, row_key

    found = []
    bad = by_role.get("negatives", ())
    if bad and "test" in by_role:
        asked = {prompt_key(row["prompt"]) for row in by_role["test"]}
        if leaks := sum(prompt_key(row["prompt"]) in asked for row in bad):
            found.append(
                f"{leaks} of the --negatives have a prompt of --test: what was unlearned is judged by it"
            )
    if bad and "held_out_negatives" in by_role:
        members = {row_key(row) for row in bad}
        if same := sum(row_key(row) in members for row in by_role["held_out_negatives"]):
            found.append(
                f"{same} of the --held-out-negatives are --negatives too: nothing can tell those apart, "
                "which draws the AUC of membership inference to 0.5"
            )
    return found


def trained_on(models: Sequence[str], retain: str) -> list[str]:
    """A warning for each run of `u2a align` whose retain term took rows of the file that usefulness is to be
    measured on: every other one (`u2a.prepare`)."""
    from u2a.losses import resolve_loss

    found = []
    for run in runs_of(models) if retain else ():
        try:
            source, loss, term = (run.config.get(name) or "" for name in ("retain", "loss", "retain_loss"))
            _, term = resolve_loss(loss, term or None)
            same = run.place(source).resolve() == Path(retain).expanduser().resolve()
        except (OSError, ValueError, TypeError, AttributeError, UserError):  # no run of `u2a align`
            continue
        if source and same and term in ("nll", "kl"):
            found.append(
                f"{run.name} was trained on every other row of --retain (its retain term {term}): perplexity "
                "and KL look better on those than on others; give good texts that no model was trained on"
            )
    return found


def chosen_by(models: Sequence[str], test: Dataset | None) -> list[str]:
    """A warning for each run of `u2a align` whose validation rows have prompts of the held-out pairs: those
    rows weighted its negatives and chose its best step."""
    from u2a.commands.session import load_validation

    asked = row_prompt_keys(test) if test is not None else []
    found = []
    for run in runs_of(models) if asked else ():
        file = run.place(run.text("preferences"))
        if not run.text("preferences") or not file.exists():  # nothing is fetched from the Hub for it
            continue
        try:
            met = prompt_keys(load_validation(run.text("objective"), str(file)))
        except (OSError, UserError):  # it has become another file since
            continue
        if same := sum(key in met for key in asked):
            found.append(
                f"{same} of {len(asked)} pairs of --test share prompts with the --preferences that "
                f"{run.name} was chosen by: what they show need not hold for others; take pairs of others"
            )
    return found
