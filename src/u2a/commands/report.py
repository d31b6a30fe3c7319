"""`u2a report`: one HTML file of one or several runs, and its figures for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from u2a.commands.terminal import give, say
from u2a.types import UserError


def run(values: Mapping[str, Any], runs: Sequence[str]) -> int:
    """Writes the page, into the only run's folder or to `--output`; and the plots, if asked for."""
    from u2a.report.html import write_report
    from u2a.report.static_plots import check_plots, write_plots

    folders = [Path(each).expanduser() for each in runs]
    output = Path(values["output"]).expanduser() if values["output"] else None
    plots = Path(values["plots"]).expanduser() if values["plots"] else None
    if output is not None and plots is not None and output.resolve().is_relative_to(plots.resolve()):
        raise UserError(f"--output {output} lies in --plots {plots}; name a place outside it")
    if plots is not None:  # before anything is written
        check_plots(plots)
    page = write_report(*folders, output=output, with_text=values["text"])
    give(report=str(page))
    say(f"Report: {page}", essential=True)
    if plots is not None:
        drawn = write_plots(folders, plots, values["format"])
        give(plots=str(plots))
        say(f"Plots: {len(drawn)} files in {plots}")
    return 0
