"""`README.md` of a run folder: a model card for the Hugging Face Hub that gives no private text away.

Row text and prompts are never read here. Warnings of the run are counted, not quoted; paths are reduced to
names and secrets left out of everything that is quoted.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from u2a.report.card_header import base_model, base_of, data_rows, front_matter, licence_of_base
from u2a.report.first_adapters import below
from u2a.report.record import Record, read_record
from u2a.report.wording import (
    memory,
    number,
    public_value,
    settings,
    visible,
    without_paths,
    without_secrets,
)
from u2a.runs.run_folder import write_text

FEW_PAIRS = 30
"""Fewer validation rows than this are called noisy."""

_MARKDOWN = re.compile(r"([\\`*_\[\]|~#$])")


@dataclass(frozen=True)
class _Kind:
    """What a card stands beside: `folder` of the run ("" = itself), `peft` = an adapter and not a whole
    model; `code` is how its reader names it in Python."""

    folder: str
    peft: bool
    code: str


def write_model_card(run: Path) -> Path:
    """Writes `README.md` into a run folder, whole, and returns its path.

    Also into those of `adapter/`, `model/` and `merged/` that are there: each may be pushed to a hub.

    Raises:
        UserError: the folder, its `config.yaml`, `versions.json` or `summary.json` is missing or broken.
    """
    record = read_record(run)
    lora = record.config.get("lora_rank", 1) != 0
    here = "the/folder/or/id/of/this/repository"
    kinds = [
        _Kind("", lora, "adapter" if lora else "model"),
        _Kind("adapter", True, here),
        _Kind("model", False, here),
        _Kind("merged", False, here),
    ]
    for kind in kinds:
        if (run / kind.folder).is_dir():
            write_text(run / kind.folder / "README.md", _card(record, kind))
    return run / "README.md"


def _card(record: Record, kind: _Kind) -> str:
    base = base_model(record)
    environment = Environment(  # the card is Markdown: `_quoted` escapes it, and HTML with it
        loader=PackageLoader("u2a.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_quoted,
    )
    environment.filters |= {
        "number": number,
        "signed": lambda value: number(value, signed=True),
        "memory": memory,
    }
    licence = licence_of_base(record)
    bottom = below(str(record.config.get("model") or ""))
    whole = base_of(bottom.base, record) if bottom.adapters else base
    return environment.get_template("model_card.md.j2").render(
        record=record,
        front_matter=Markup(front_matter(record, base, licence, kind.peft)),
        base=base,
        first_adapters=[Markup(name) for name in bottom.adapters],
        base_code=Markup(whole or "path/of/the/original/model"),
        model_name=base or public_value(str(record.config.get("model", ""))),
        licence=licence,
        data=data_rows(record),
        kind=kind,
        lora=record.config.get("lora_rank", 1) != 0,
        code=Markup(kind.code),
        few_pairs=FEW_PAIRS,
        settings=Markup(settings(record.config, public=True)),
    )


def _quoted(value: Any) -> Any:
    """Every piece of text that the template puts out: one line, public, its Markdown and HTML inert."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    public = visible(without_paths(without_secrets(re.sub(r"\s+", " ", value))))
    return _MARKDOWN.sub(r"\\\1", html.escape(public, quote=False))
