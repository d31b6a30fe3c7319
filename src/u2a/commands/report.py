"""`u2a report`: one HTML file of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from u2a.commands.terminal import give, say


def run(_values: Mapping[str, Any], run: str, text: bool) -> int:
    """Writes `report.html` into the run folder."""
    from u2a.report.html import write_report

    path = write_report(Path(run).expanduser(), with_text=text)
    give(report=str(path))
    say(f"Report: {path}", essential=True)
    return 0
