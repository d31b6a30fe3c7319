"""The report's page: templates, styles and scripts made into one file that asks nobody for anything.

What people wrote reaches the page in two ways: through autoescaping, with misleading characters made
visible; or packed, as data that scripts put on the page as text and never as markup. As a second wall, the
page's content security policy forbids every request and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from u2a.report.headline import headline, tiles
from u2a.report.negatives_table import extreme_tables, extremes, table_data, table_positions
from u2a.report.packing import packed_json, packed_plotly
from u2a.report.record import Record
from u2a.report.run_view import TEXT_LENGTH, RunView
from u2a.report.runs_table import compared, run_names
from u2a.report.wording import (
    counted,
    duration,
    excerpt,
    memory,
    number,
    public_value,
    settings,
    visible,
    without_secrets,
)

PAGE_BYTES = 5_000_000
"""Largest page. Texts of negatives are cut until it fits; at last figures are shown as tables."""
LENGTHS = (TEXT_LENGTH, 600, 300, 150, 75, 0)
"""Most characters of a text in the table of negatives, tried in this order."""
_SCRIPTS = ("theme.js", "unpack.js", "figures.js", "negatives.js")


def render(views: Sequence[RunView], *, with_text: bool) -> str:
    """The whole page of these runs, with as much text as fits."""
    content = _content(views, with_text)
    template = _environment().get_template("report.html.j2")
    lengths = LENGTHS if any(view.texts for view in views) else LENGTHS[-1:]
    page = ""
    for plotly in (True, False) if content["figures"] else (False,):
        for length in lengths:
            page = template.render(content, length=length, **_data(views, content["names"], length, plotly))
            if len(page.encode()) <= PAGE_BYTES:
                return page
    return page


def _content(views: Sequence[RunView], with_text: bool) -> dict[str, Any]:
    names = run_names(views)
    runs = [
        {
            "view": view,
            "record": view.record,
            "name": name,
            "prefix": f"r{place}-",
            "headline": headline(view.record),
            "tiles": tiles(view.record, view.tables[0][1] if len(view.tables) == 1 else []),
            "extremes": extreme_tables(view.scores, _texts_of_extremes(view)),
            "models": _models(view.record, public=not with_text),
            "settings": settings(view.record.config, public=not with_text),
            "rows": len(view.scores.row),
            "shown_rows": len(table_positions(view.scores)),
        }
        for place, (view, name) in enumerate(zip(views, names, strict=True), start=1)
    ]
    return {
        "runs": runs,
        "names": names,
        "groups": compared(views, public=not with_text) if len(views) > 1 else [],
        "with_text": with_text,
        "holds_text": any(view.texts or view.samples for view in views),
        "full_length": TEXT_LENGTH,
        "figures": any(view.all_plots for view in views),
        "style": Markup(_asset("page.css")),
        "scripts": {name: Markup(_asset(name)) for name in _SCRIPTS},
    }


def _models(record: Record, *, public: bool) -> str:
    """The models of an `evaluate` run as its command takes them, each after a space; else nothing."""
    models = record.config.get("models") if record.command == "evaluate" else None
    if not isinstance(models, list):
        return ""
    shown = (public_value(model) if public else without_secrets(model) for model in map(str, models))
    return "".join(f" {shlex.quote(model)}" for model in shown)


def _texts_of_extremes(view: RunView) -> dict[int, tuple[str, str]]:
    return {at: view.texts[at] for each in extremes(view.scores) for at in each} if view.texts else {}


def _data(views: Sequence[RunView], names: Sequence[str], length: int, plotly: bool) -> dict[str, Any]:
    """What is packed: plotly.js (and, unpacked, what its hash is taken of), figures, tables of negatives."""
    script, library = packed_plotly() if plotly else ("", Markup(""))
    figures = {
        f"r{place}-{plot.key}": plot.figure
        for place, view in enumerate(views, start=1)
        for plot in view.all_plots
    }
    tables = {
        f"r{place}-": packed_json({"run": visible(name), **table_data(view.scores, view.texts, length)})
        for place, (view, name) in enumerate(zip(views, names, strict=True), start=1)
        if view.record.scores_negatives
    }
    return {
        "plotly": library,
        "policy": csp_hashes([*map(_asset, _SCRIPTS), script]),
        "plot_data": packed_json(figures) if plotly else Markup(""),
        "tables": tables,
    }


def csp_hashes(scripts: Iterable[str]) -> Markup:
    """Sources of a content security policy that let exactly these inline scripts run."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts if script)
    return Markup(" ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests))


@cache
def _asset(name: str) -> str:
    return (files("u2a.report") / "templates" / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("u2a.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_harmless,
    )
    environment.filters |= {
        "number": number,
        "signed": lambda value: number(value, signed=True),
        "memory": memory,
        "duration": duration,
        "counted": counted,
        "excerpt": excerpt,
        "cell": lambda value: value if isinstance(value, str) else number(value),
    }
    return environment


def _harmless(value: Any) -> Any:
    """Every piece of text that the template puts out passes here, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
