"""Tables that docs/explanation repeats say what docs/results.md, which the benchmarks write, says."""

import re

from documents import ROOT


def cells(text, first):
    """The cells of the table rows whose first cell, without marks, begins so."""
    rows = [
        [cell.strip(" `–") for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    return [row for row in rows if row[0] == first]


def test_the_curvatures_agreement_is_that_of_the_fidelity_section():
    page = (ROOT / "docs" / "explanation" / "curvature.md").read_text(encoding="utf-8")
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = re.search(r"<!-- fidelity: begin -->(.*?)<!-- fidelity: end -->", results, re.S)[1]
    npo, graddiff = section.split("### graddiff, real", 1)
    for name in ("diagonal", "adam", "identity", "kfac", "ekfac", "cosine"):
        shown = "for comparison: cosine of gradients, as LESS" if name == "cosine" else name
        row = cells(page, shown)[-1]  # an earlier table explains the names
        assert row[1:3] == [cells(part, name)[0][1] for part in (npo, graddiff)], name
        if name != "cosine":
            assert row[3] == cells(graddiff, name)[-1][1], name
