"""The YAML header of a model card: base, licence, data sets and figures, for the Hub to read.

Only what is public goes in: ids of the Hub, names of licences, numbers.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from u2a.report.record import Record
from u2a.report.wording import is_hub_id, public_value
from u2a.storage.links import refuse_links_out
from u2a.storage.plain_yaml import plain_values
from u2a.types import UserError

DEMO_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What `--model demo` stands for."""
DEMO_LICENCE = "apache-2.0"

ROLES = {
    "negatives": "unlearned: bad answers",
    "preferences": "validation: J is measured on it",
    "retain": "utility: what must stay",
    "test": "held out: final figures only",
}
"""Option that names rows -> what they were for."""
_COUNTS = {"preferences": "validation"}
"""Option -> its name among the counts, where they differ."""
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")
_URL = re.compile(r"https://[\w./%#-]{1,200}")
_LONGEST_CARD = 1 << 20
_METRICS = (
    ("held-out", "test", "held-out preference pairs"),
    ("change of held-out", "test", "held-out preference pairs"),
    ("J ", "preferences", "validation preference pairs"),
    ("log-prob of the negatives", "negatives", "negatives"),
    ("", "retain", "retain texts"),
)
"""How a metric's name begins, the option that brought its rows, and what they are."""


class Licence(NamedTuple):
    """`licence: other` has a name and perhaps a link; they are empty for those that the Hub knows."""

    id: str
    name: str = ""
    link: str = ""


class DataRow(NamedTuple):
    """A line of the card's data table; `source` is a Hub id or the file's name, `rows` None = not counted."""

    role: str
    source: str
    rows: int | None


def base_model(record: Record) -> str | None:
    """The Hub id of the original model; None when it is, or may be, something on this machine."""
    return base_of(record.config.get("model"), record)


def base_of(model: Any, record: Record) -> str | None:
    """The same of any model."""
    if model == "demo":
        return DEMO_BASE
    return model if isinstance(model, str) and _on_the_hub(model, record) else None


def _on_the_hub(source: str, record: Record) -> bool:
    return is_hub_id(source, folders=record.path.resolve().parents)


def licence_of_base(record: Record) -> Licence | None:
    """The licence that the original model's own card states; None where there is no card to read.

    A model folder's card is read; of a model of the Hub no file is fetched for it.
    """
    model = record.config.get("model")
    if model == "demo":
        return Licence(DEMO_LICENCE)
    if not isinstance(model, str) or not model:
        return None
    folder = Path(model).expanduser()
    try:
        refuse_links_out(folder)
        with (folder / "README.md").open(encoding="utf-8") as file:
            stated = _header(file.read(_LONGEST_CARD))
    except (OSError, ValueError, UserError):
        return None
    found = str(stated.get("license", ""))
    if not _LICENCE.fullmatch(found):
        return None
    name, link = str(stated.get("license_name", "")), str(stated.get("license_link", ""))
    return Licence(
        found.lower(), name if _LICENCE.fullmatch(name) else "", link if _URL.fullmatch(link) else ""
    )


def _header(card: str) -> dict[str, Any]:
    """The YAML between the first two lines of three dashes; nothing where there is none.

    Raises:
        ValueError: it is no plain YAML.
    """
    found = re.match(r"---\s*\n(.*?)\n---\s*\n", card, re.S)
    content = plain_values(found.group(1)) if found else None
    return content if isinstance(content, dict) else {}


def data_rows(record: Record) -> list[DataRow]:
    """What the run was made on, by role."""
    found = []
    for option, role in ROLES.items():
        source = record.config.get(option)
        if isinstance(source, str) and source:
            name = "standard input" if source == "-" else str(public_value(source))
            found.append(DataRow(role, name, record.counts.get(_COUNTS.get(option, option))))
    return found


def front_matter(record: Record, base: str | None, licence: Licence | None, peft: bool) -> str:
    """The header's YAML, without its dashes."""
    fields: dict[str, Any] = {}
    if not record.measured_only:
        fields["library_name"] = "peft" if peft else "transformers"
        fields["pipeline_tag"] = "text-generation"
    if base:
        fields["base_model"] = base
        if not record.measured_only:
            fields["base_model_relation"] = "adapter" if peft else "finetune"
    if licence and not record.measured_only:
        fields["license"] = licence.id
        if licence.id == "other":
            fields |= {f"license_{key}": value for key, value in licence._asdict().items() if key != "id"}
            fields = {key: value for key, value in fields.items() if value}
    if ids := _data_sets(record):
        fields["datasets"] = ids
    fields["tags"] = ["u2a", "unlearning", "alignment"]
    if not record.measured_only and (results := _results(record)):
        name = f"{base.rpartition('/')[2]}-u2a" if base else "u2a-aligned"
        fields["model-index"] = [{"name": name, "results": results}]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).strip()


def _data_sets(record: Record) -> list[str]:
    sources = [record.config.get(option) for option in ROLES]
    return sorted({s for s in sources if isinstance(s, str) and _on_the_hub(s, record)})


def _results(record: Record) -> list[dict[str, Any]]:
    """The aligned model's figures as the Hub's `model-index`, one entry a data set."""
    found: dict[str, dict[str, Any]] = {}
    for row in record.table:
        if not math.isfinite(row.aligned):
            continue
        _, option, what = next(each for each in _METRICS if row.metric.startswith(each[0]))
        source = record.config.get(option)
        public = isinstance(source, str) and _on_the_hub(source, record)
        entry = found.setdefault(
            option,
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": what, "type": source if public else "local"},
                "metrics": [],
            },
        )
        kind = re.sub(r"[^a-z0-9]+", "_", row.metric.lower()).strip("_") or "metric"
        name = "accuracy" if kind == "held_out_accuracy_summed" else kind
        entry["metrics"].append(
            {"type": name, "name": _plain(f"{row.metric} ({row.unit})"), "value": row.aligned}
        )
    return list(found.values())


def _plain(text: str) -> str:
    """Letters, digits and the signs of units alone, and no longer than a name."""
    return re.sub(r"[^\w ,.()/%-]+", " ", text)[:100]
