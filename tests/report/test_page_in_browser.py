"""The page as a reader meets it, in a real browser: what it shows, what it does, whom it asks (nobody)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from run_folders import HOSTILE, align_run, compare_run, evaluate_run, large_run, verify_run, write_impact
from u2a.report.html import write_report

if TYPE_CHECKING:
    from browsers import Visit

pytest_plugins = ["browsers"]
pytestmark = pytest.mark.browser

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
COUNT = 300
Open = Callable[..., "Visit"]
TABLE = "[data-negatives] table"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of a run of many negatives, one of every kind of run, and one of them all."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {"large": large_run(folder, COUNT)}
    runs |= {each.name: each for each in (evaluate_run(folder), verify_run(folder), compare_run(folder))}
    found = {name: write_report(run) for name, run in runs.items()}
    return found | {"several": write_report(*runs.values(), output=folder / "several.html")}


@pytest.fixture(name="opened")
def opened_page(visit: Open) -> Open:
    def opened(path: Path, until: str = "html[data-figures=drawn]", **context: Any) -> Visit:
        seen = visit(path.as_uri(), **context)
        seen.page.locator(until).wait_for()
        return seen

    return opened


def impacts(seen: Visit) -> list[float]:
    """Of the rows on the open page of the table, without their errors."""
    cells = seen.page.locator("[data-negatives] tr.figures td:nth-child(3)")
    return [float(text.split()[0]) for text in cells.all_inner_texts()]


def status(seen: Visit) -> str:
    return seen.page.get_by_role("status").inner_text()


def expect_status(seen: Visit, words: str) -> None:
    """Waits for it: the search waits for a pause in the typing."""
    from playwright.sync_api import expect

    expect(seen.page.get_by_role("status")).to_contain_text(words)


LIGHT, DARK = {"color_scheme": "light"}, {"color_scheme": "dark"}


@pytest.mark.parametrize(
    "name, context",
    [
        *((name, LIGHT) for name in ("large", "evaluated", "verified", "compared", "several")),
        *((name, DARK) for name in ("large", "several")),
        *((name, PHONE) for name in ("large", "several")),
    ],
    ids=lambda given: given if isinstance(given, str) else given.get("color_scheme", "phone"),
)
def test_every_page_is_quiet_accessible_and_no_wider_than_its_window(
    pages: dict[str, Path], opened: Open, name: str, context: dict[str, Any]
) -> None:
    seen = opened(pages[name], **context)
    assert seen.complaints == []
    assert seen.outside() == []
    assert seen.overflow() <= 0
    assert seen.faults_of_access() == []
    plots = seen.page.locator(".plot")
    assert plots.count() > 0
    assert plots.count() == seen.page.locator(".plot .main-svg:first-child").count()


def test_search_finds_words_in_texts_and_ids(pages: dict[str, Path], opened: Open) -> None:
    seen = opened(pages["large"], TABLE)
    assert status(seen) == "1 to 25 of 300 shown negatives, page 1 of 12"
    assert not seen.page.get_by_text("Most worthwhile to unlearn").is_visible()
    search = seen.page.get_by_role("searchbox", name="Search")
    search.fill("NEGATIVE-00007")
    expect_status(seen, "1 to 1 of 1 shown negatives")
    assert "shown negatives of 300" in status(seen)
    row = seen.page.locator("[data-negatives] tbody")
    assert row.locator("th").inner_text() == "7"
    details = row.locator("details")
    assert not details.locator("dl").is_visible()
    details.locator("summary").click()
    words = details.locator("dd").first.inner_text()
    search.fill(f"{words.split()[3]} negative-00007")  # all words, in any order, in any field
    seen.page.wait_for_timeout(300)
    expect_status(seen, "1 to 1 of 1 shown negatives")
    search.fill("negative-00007 nosuchword")
    expect_status(seen, "No negative matches.")
    assert seen.page.get_by_role("button", name="Export shown as CSV").is_disabled()


def test_headings_sort_both_ways_by_keyboard_too(pages: dict[str, Path], opened: Open) -> None:
    seen = opened(pages["large"], TABLE)
    table = seen.page.locator(TABLE)
    heading = table.get_by_role("columnheader", name="impact")
    assert heading.get_attribute("aria-sort") == "descending"
    assert impacts(seen) == sorted(impacts(seen), reverse=True)
    largest = impacts(seen)[0]
    button = heading.get_by_role("button")
    button.focus()
    seen.page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert impacts(seen) == sorted(impacts(seen))
    assert impacts(seen)[0] < 0 < largest
    table.get_by_role("columnheader", name="row").get_by_role("button").click()
    assert heading.get_attribute("aria-sort") is None
    rows = table.locator("tbody th").all_inner_texts()
    assert rows == [str(i) for i in range(25)]


def test_pages_are_turned(pages: dict[str, Path], opened: Open) -> None:
    seen = opened(pages["large"], TABLE)
    least = impacts(seen)[-1]
    assert seen.page.get_by_role("button", name="Previous").is_disabled()
    for _ in range(COUNT // 25 - 1):
        seen.page.get_by_role("button", name="Next").click()
    assert impacts(seen)[0] <= least
    assert status(seen).startswith("276 to 300 of 300")
    assert seen.page.get_by_role("button", name="Next").is_disabled()


def test_filters_narrow_together(pages: dict[str, Path], opened: Open) -> None:
    table = pq.read_table(pages["large"].parent / "impact.parquet").to_pydict()
    impact, cost, error = (np.array(table[name]) for name in ("impact", "utility_cost", "impact_se"))
    chosen = np.array(pq.read_table(pages["large"].parent / "weights.parquet")["selected"].to_pylist())
    seen = opened(pages["large"], TABLE)

    def count_after(label: str, option: str) -> int:
        seen.page.get_by_role("combobox", name=label).select_option(label=option)
        return int(status(seen).split(" of ")[1].split()[0])

    assert count_after("Selection", "selected") == chosen.sum()
    assert count_after("Utility", "does not lower U") == (chosen & (cost <= 0)).sum()
    assert count_after("Selection", "not selected") == (~chosen & (cost <= 0)).sum()
    assert count_after("Selection", "all") == (cost <= 0).sum()
    assert count_after("Utility", "all") == COUNT
    assert count_after("Impact", "raises J") == (impact > 0).sum()
    assert count_after("Impact", "raises J beyond noise") == (impact > 1.96 * error).sum()
    assert count_after("Impact", "does not raise J") == (impact <= 0).sum()


FORMULAS = [
    '=HYPERLINK("http://127.0.0.1:9")',
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    " =2",
    "\uff1d3",
    'say "hi", ok',
]


@pytest.fixture(name="formulas")
def formulas_run(tmp_path: Path) -> Path:
    run = align_run(tmp_path)
    (run / "weights.parquet").unlink()
    n = len(FORMULAS)
    columns = {"row": list(range(n)), "id": [f"id{i}" for i in range(n)], "prompt": FORMULAS}
    columns |= {"response": FORMULAS, "impact": [-0.5 - i for i in range(n)], "utility_cost": [None] * n}
    columns |= {"n_tokens": [1] * n}
    table = pa.table(columns)
    at = table.column_names.index("utility_cost")
    pq.write_table(table.set_column(at, "utility_cost", pa.nulls(n, pa.float64())), run / "impact.parquet")
    return write_report(run)


def exported(seen: Visit, button: str) -> tuple[str, str]:
    with seen.page.expect_download() as waiting:
        seen.page.get_by_role("button", name=button).click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes().decode()


def test_csv_has_the_shown_rows_and_no_formula(formulas: Path, opened: Open) -> None:
    name, text = exported(opened(formulas, TABLE), "Export shown as CSV")
    assert name == "run-negatives.csv"
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == ["row", "id", "impact", "utility_cost", "n_tokens", "prompt", "response"]
    assert [row["impact"] for row in rows] == [str(-0.5 - i) for i in range(len(FORMULAS))]
    assert {row["utility_cost"] for row in rows} == {""}
    *dangerous, harmless = [row["prompt"] for row in rows]
    assert dangerous == ["'" + text for text in FORMULAS[:-1]]
    assert harmless == FORMULAS[-1]


def test_jsonl_has_the_shown_rows_as_they_are(formulas: Path, opened: Open) -> None:
    seen = opened(formulas, TABLE)
    seen.page.get_by_role("searchbox").fill("SUM")
    expect_status(seen, "1 to 1 of 1 shown negatives")
    name, text = exported(seen, "Export shown as JSONL")
    assert name == "run-negatives.jsonl"
    (row,) = map(json.loads, text.splitlines())
    figures = {"row": 3, "id": "id3", "impact": -3.5, "utility_cost": None, "n_tokens": 1}
    assert row == figures | {"prompt": "@SUM(A1)", "response": "@SUM(A1)"}


def test_the_scheme_can_be_switched_and_figures_follow(pages: dict[str, Path], opened: Open) -> None:
    from playwright.sync_api import expect

    seen = opened(pages["verified"], color_scheme="light")
    button = seen.page.get_by_role("button", name="Dark")
    page, words = seen.page.locator("body"), seen.page.locator(".plot .xtick text").first
    for pressed, background, text in (
        ("false", "rgb(255, 255, 255)", "rgb(27, 31, 36)"),
        ("true", "rgb(20, 23, 27)", "rgb(230, 233, 237)"),
        ("false", "rgb(255, 255, 255)", "rgb(27, 31, 36)"),
    ):
        expect(button).to_have_attribute("aria-pressed", pressed)
        expect(page).to_have_css("background-color", background)
        expect(words).to_have_css("fill", text)
        button.click()
    assert seen.complaints == []


def test_hostile_text_is_shown_as_text(tmp_path: Path, opened: Open) -> None:
    run = align_run(tmp_path)
    write_impact(run, ids=[f"{HOSTILE} {i}" for i in range(4)], text=HOSTILE, prompt=HOSTILE)
    seen = opened(write_report(run))
    table = seen.page.locator(TABLE)
    for summary in table.locator("summary").all():
        summary.click()
    texts = table.locator("dd").all_inner_texts()
    assert len(texts) == 8
    for text in texts:
        assert "</script><script>alert(1)</script><img src=x onerror=alert(2)>" in text
        assert "␛]0;owned␇" in text
        assert "\\u202e<a href=javascript:alert(3)>x</a>" in text
    assert table.locator("script, img, a").count() == 0
    hover = seen.page.locator("#plot-r1-cost .scatterlayer path.point").first
    hover.hover(force=True)
    shown = seen.page.locator("#plot-r1-cost .hoverlayer text").first
    shown.wait_for()
    assert "</script>" in shown.text_content()
    assert seen.complaints == []
    assert seen.outside() == []


def test_without_scripts_numbers_and_extremes_stand_there(pages: dict[str, Path], visit: Open) -> None:
    seen = visit(pages["large"].as_uri(), java_script_enabled=False)
    assert seen.page.get_by_text("Most worthwhile to unlearn").is_visible()
    assert seen.page.locator("noscript p").is_visible()
    assert not seen.page.get_by_role("searchbox").is_visible()


def test_an_old_browser_is_told_and_keeps_the_extremes(pages: dict[str, Path], chromium: Any) -> None:
    context = chromium.new_context()
    context.add_init_script("delete window.DecompressionStream")
    page = context.new_page()
    page.goto(pages["large"].as_uri())
    page.get_by_text("This browser cannot show the figures").wait_for()
    assert page.get_by_text("Most worthwhile to unlearn").is_visible()
    context.close()
