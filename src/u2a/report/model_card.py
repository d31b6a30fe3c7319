"""`README.md` of a run folder: a model card for the Hugging Face Hub that gives no private text away.

Row text and prompts are never read here. Warnings of the run are counted, not quoted; paths are reduced to
names and secrets left out of everything that is quoted.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from u2a.report.record import Record, read_record
from u2a.report.wording import (
    is_hub_id,
    memory,
    number,
    public_value,
    settings,
    visible,
    without_paths,
    without_secrets,
)
from u2a.runs import write_text

FEW_PAIRS = 30
"""Fewer validation rows than this are called noisy."""

DEMO_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What `--model demo` stands for."""

_MARKDOWN = re.compile(r"([\\`*_\[\]|~#$])")


def write_model_card(run: Path) -> Path:
    """Writes `README.md` into a run folder, whole, and returns its path.

    Raises:
        UserError: the folder, its `config.yaml`, `versions.json` or `summary.json` is missing or broken.
    """
    record = read_record(run)
    base = base_model(record)
    lora = record.config.get("lora_rank", 1) != 0
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
    card = environment.get_template("model_card.md.j2").render(
        record=record,
        front_matter=Markup(_front_matter(record, base, lora)),
        base=base,
        base_code=Markup(base or "path/of/the/original/model"),
        model_name=base or public_value(str(record.config.get("model", ""))),
        lora=lora,
        few_pairs=FEW_PAIRS,
        settings=Markup(settings(record.config, public=True)),
    )
    path = run / "README.md"
    write_text(path, card)
    return path


def base_model(record: Record) -> str | None:
    """The Hub id of the original model; None when it is, or may be, something on this machine."""
    model = record.config.get("model")
    if model == "demo":
        return DEMO_BASE
    if isinstance(model, str) and is_hub_id(model, folders=record.path.resolve().parents):
        return model
    return None


def _front_matter(record: Record, base: str | None, lora: bool) -> str:
    fields: dict[str, Any] = {}
    if not record.measured_only:
        fields["library_name"] = "peft" if lora else "transformers"
        fields["pipeline_tag"] = "text-generation"
    if base:
        fields["base_model"] = base
        if not record.measured_only:
            fields["base_model_relation"] = "adapter" if lora else "finetune"
    fields["tags"] = ["u2a", "unlearning", "alignment"]
    return yaml.safe_dump(fields, sort_keys=False).strip()


def _quoted(value: Any) -> Any:
    """Every piece of text that the template puts out: one line, public, its Markdown and HTML inert."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    public = visible(without_paths(without_secrets(re.sub(r"\s+", " ", value))))
    return _MARKDOWN.sub(r"\\\1", html.escape(public, quote=False))
