"""What the page of a review asks for: rows, and marks on them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Query as Parameters
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from u2a.report.wording import visible
from u2a.review.marks import Mark, Review
from u2a.review.table import Query, ReviewTable
from u2a.served.page import LocalPage
from u2a.types import UserError

log = logging.getLogger("u2a")


class Wanted(BaseModel):
    """A piece of the table: which rows, in which order, from which one on."""

    search: str = Field("", max_length=1000)
    sort: Literal["impact", "size", "cost", "weight", "tokens", "row"] = "impact"
    descending: bool = True
    marks: Literal["all", "unmarked", "marked", "wrong label", "exclude"] = "all"
    sign: Literal["all", "positive", "negative", "selected", "left out"] = "all"
    offset: int = Field(0, ge=0)
    limit: int = Field(50, ge=1, le=500)


class Marking(BaseModel):
    """A mark on a row; an empty reason takes it away."""

    row: int
    reason: Literal["", "wrong label", "exclude"]
    note: str = Field("", max_length=2000)


@dataclass(frozen=True)
class ReviewAnswers:
    """Answers to the page's requests."""

    run: Path
    table: ReviewTable
    review: Review

    def about(self) -> dict[str, Any]:
        """What the page says once."""
        return {
            "run": visible(self.run.resolve().name),
            "reviewed": visible(str(self.review.reviewed)),
            "weighted": self.table.scores.weight is not None,
            "negatives": len(self.table.negatives),
        }

    def rows(self, wanted: Annotated[Wanted, Parameters()]) -> dict[str, Any]:
        """The rows of one piece of the table, and how many there are in all."""
        query = Query(wanted.search, wanted.sort, wanted.descending, wanted.marks, wanted.sign)
        marks = self.review.marks
        found = self.table.find(query, marks)
        shown = found[wanted.offset : wanted.offset + wanted.limit].tolist()
        return {
            "total": len(found),
            "counts": self.review.counts,
            "rows": [self.table.shown(row, marks.get(row)) for row in shown],
        }

    def mark(self, marking: Marking) -> JSONResponse:
        """Marks a row, or says why it could not."""
        try:
            kept = Mark(marking.reason, marking.note) if marking.reason else None
            self.review.mark(marking.row, kept)
        except UserError as error:
            return JSONResponse({"error": str(error)}, 409)
        except OSError as error:
            log.error("the mark could not be saved: %s", error)
            return JSONResponse({"error": f"not saved: {error.strerror or error}"}, 507)
        return JSONResponse({"counts": self.review.counts})


def review_page(run: Path, table: ReviewTable, review: Review, port: int = 0) -> LocalPage:
    """The page, ready to be run.

    Raises:
        UserError: the port is taken, or not allowed.
    """
    page, answers = LocalPage("u2a.review", port), ReviewAnswers(run, table, review)
    page.app.get("/about")(answers.about)
    page.app.get("/rows")(answers.rows)
    page.app.post("/mark", response_model=None)(answers.mark)
    return page
