"""`report.html`: one self-contained page of one or several runs that works offline and asks nobody."""

from __future__ import annotations

from pathlib import Path

from u2a.report.page import render
from u2a.report.run_view import read_run
from u2a.runs.run_folder import write_text
from u2a.types import UserError


def write_report(*runs: Path, output: Path | None = None, with_text: bool = True) -> Path:
    """Writes the page whole, and returns its path.

    Args:
        runs: folders of `align`, `impact`, `verify`, `compare` or `evaluate` runs, shown side by side.
        output: a new file; None = `report.html` in the folder of the only run, which is written again.
        with_text: show texts of negatives, sample answers, and settings with their full paths. Without it
            the page can be passed on: negatives appear by row and id, paths as bare names.

    Raises:
        UserError: a folder or one of its files is missing or broken; `output` is there already, or missing
            for several runs. Names it.
    """
    if output is None and len(runs) != 1:
        raise UserError("--output is missing: a new file for the report of several runs")
    if output is not None and (output.exists() or output.is_symlink()):
        raise UserError(f"--output {output} is there already; name a new file")
    views = [read_run(run, with_text=with_text) for run in runs]
    path = output or runs[0] / "report.html"
    write_text(path, render(views, with_text=with_text))
    return path
