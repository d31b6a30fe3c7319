"""`u2a review`: goes through a run's negatives by impact, in the browser, and marks what is no negative."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2a.commands.terminal import give, say
from u2a.runs.run_lock import RunLock
from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.served.page import LocalPage


def run(values: Mapping[str, Any], run: str) -> int:
    """Serves the page until it is ended; `reviewed.jsonl` and `review.json` are written after every mark."""
    need_served("u2a review")
    from u2a.data.load import load_negatives
    from u2a.data.raw_rows import RawRows
    from u2a.review.marks import REVIEW, Review
    from u2a.review.page import review_page
    from u2a.review.table import ReviewTable

    folder = Path(run).expanduser()
    source = _negatives_of(folder, values["negatives"])
    _refuse_lost(source, folder)
    negatives = load_negatives(source)
    table = ReviewTable.read(folder, negatives, source)
    output = Path(values["output"]).expanduser() if values["output"] else folder
    output.mkdir(parents=True, exist_ok=True)
    lock = RunLock.take(output)
    try:
        review = Review.open(output, source, negatives, RawRows.read(source))
        serve(review_page(folder, table, review, values["port"]))
    finally:
        if lock is not None:
            lock.release()
    counts = review.counts
    marked = ", ".join(f"{count} {name}" for name, count in counts.items() if name != "remaining")
    give(reviewed=str(review.reviewed), marks=str(review.reviewed.with_name(REVIEW)), counts=counts)
    say(f"{counts['remaining']} negatives are left ({marked}): --negatives {review.reviewed}", essential=True)
    return 0


def serve(page: LocalPage) -> None:
    """Says where the page is, and serves it until it is ended."""
    say(
        f"Open {page.address} on this machine (the address is the key: do not pass it on). Ctrl-C ends it.",
        essential=True,
    )
    page.run()


def need_served(what: str) -> None:
    """Raises `UserError` where the packages for served pages are not installed."""
    if not all(find_spec(name) for name in ("fastapi", "uvicorn")):
        raise UserError(f"{what} needs the extra `serve`: pip install 'u2a[serve]'")


def _refuse_lost(source: str, folder: Path) -> None:
    if source == "-":
        raise UserError(
            "standard input cannot be read again: name the file with the run's negatives with --negatives"
        )
    if not Path(source).expanduser().exists() and source.count("/") != 1:  # with one it may be a Hub id
        raise UserError(
            f"{source}: the negatives of {folder} are not there any more, as seen from this folder: name "
            "their file with --negatives"
        )


def _negatives_of(folder: Path, given: str) -> str:
    """What the user names, else the run's configuration; either way it is a run that scores negatives."""
    from u2a.report.record import read_record

    record = read_record(folder)
    source = given or record.config.get("negatives")
    if not record.scores_negatives or not isinstance(source, str) or not source:
        raise UserError(f"{folder}: no run of `u2a align`, `impact` or `verify`, which score negatives")
    return source
