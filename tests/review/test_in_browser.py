"""The page of a review in real Chromium: search, order, filters, marks by mouse and keyboard."""

import json

import pytest

from scored_run import HOSTILE, run_of
from served_page import has_ended, served, until
from u2a.data.load import load_negatives
from u2a.data.raw_rows import RawRows
from u2a.review.marks import Mark, Review
from u2a.review.page import review_page
from u2a.review.table import ReviewTable

pytest_plugins = ["browsers"]
pytestmark = pytest.mark.browser


@pytest.fixture
def review(tmp_path):
    run, source = run_of(tmp_path, 120)
    negatives = load_negatives(source)
    made = Review.open(run, source, negatives, RawRows.read(source))
    made.mark(2, Mark("exclude", "before"))
    return made


@pytest.fixture
def address(review, tmp_path):
    table = ReviewTable.read(tmp_path / "run", review.negatives, review.source)
    with served(review_page(tmp_path / "run", table, review)) as page:
        yield page.address


@pytest.fixture
def seen(address, visit):
    """The page, loaded; a test ends with a clean console and nothing asked for elsewhere."""
    made = visit(address)
    made.page.wait_for_selector("#rows tr")
    yield made
    assert made.complaints == []
    assert made.outside() == []


def rows(seen):
    return [int(each.get_attribute("data-row")) for each in seen.page.query_selector_all("#rows tr")]


def wait_for_rows(seen, *wanted):
    """Until the first rows are these."""
    until(seen.page, lambda: rows(seen)[: len(wanted)] == list(wanted))


def text_of(seen, name):
    return seen.page.evaluate(f"document.getElementById('{name}').textContent")


def test_it_begins_with_the_largest_impact_and_has_pages(seen):
    assert rows(seen) == list(range(50))
    assert seen.page.inner_text("#position") == "1–50 of 120"
    assert seen.page.is_disabled("#previous")
    seen.page.click("#next")
    wait_for_rows(seen, 50, 51)
    seen.page.click("#next")
    wait_for_rows(seen, 100, 101)
    assert seen.page.is_disabled("#next")
    assert seen.page.inner_text("#position") == "101–120 of 120"
    seen.page.click("#previous")
    wait_for_rows(seen, 50, 51)


def test_search_order_and_filters(seen):
    page = seen.page
    page.fill("#search", "ANSWER 11")
    wait_for_rows(seen, 11, 110, 111)
    assert page.inner_text("#position") == "1–11 of 11"
    page.select_option("#descending", "false")
    wait_for_rows(seen, 119, 118)
    page.fill("#search", "")
    page.select_option("#sort", "row")
    wait_for_rows(seen, 0, 1, 2)
    page.select_option("#sign", "negative")
    wait_for_rows(seen, 60, 61)
    page.select_option("#sign", "selected")
    wait_for_rows(seen, 0, 1)
    page.select_option("#marks", "exclude")
    wait_for_rows(seen, 2)
    page.fill("#search", "nothing like this")
    until(page, lambda: text_of(seen, "position") == "nothing fits")


def test_marks_by_mouse(seen, review):
    page = seen.page
    line = page.locator("#rows tr").nth(0)
    line.get_by_role("button", name="wrong label").click()
    page.wait_for_selector("#rows tr:nth-child(1).marked")
    assert line.get_by_role("button", name="wrong label").get_attribute("aria-pressed") == "true"
    line.locator("input").fill("is polite")
    line.locator("input").press("Enter")
    until(seen.page, lambda: "118 left, 1 wrong label" in text_of(seen, "counts"))
    seen.page.reload()
    page.wait_for_selector("#rows tr:nth-child(1).marked")
    assert page.locator("#rows tr").nth(0).locator("input").input_value() == "is polite"
    kept = json.loads((review.folder / "review.json").read_text())["marks"][0]
    assert (kept["row"], kept["reason"], kept["note"]) == (0, "wrong label", "is polite")
    page.locator("#rows tr").nth(0).get_by_role("button", name="wrong label").click()
    until(seen.page, lambda: "119 left, 0 wrong label" in text_of(seen, "counts"))
    assert 0 not in review.marks


def test_marks_by_keyboard(seen, review):
    """Without a mouse: Tab leads into the table, and out of it again."""
    page = seen.page
    page.focus(".scroll")
    page.keyboard.press("Tab")
    for key in ("j", "w", "ArrowDown", "ArrowDown", "x", "k", "u"):
        page.keyboard.press(key)
    wanted = {1: "wrong label", 3: "exclude"}
    until(page, lambda: {row: mark.reason for row, mark in review.marks.items()} == wanted)
    until(page, lambda: text_of(seen, "counts") == "118 left, 1 wrong label, 1 exclude")
    page.keyboard.press("j")
    page.keyboard.press("n")
    page.keyboard.type("jwxu/")  # in a field they are letters
    page.keyboard.press("Enter")
    until(page, lambda: page.evaluate("document.activeElement.tagName") == "TR")
    until(page, lambda: 3 in review.marks and review.marks[3].note == "jwxu/")
    page.keyboard.press("Enter")  # whole text
    assert page.locator("#rows tr").nth(3).locator(".clipped").count() == 0
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("wer")  # letters, no mark
    wait_for_rows(seen, 0, 2)
    assert len(review.marks) == 2
    assert review.marks[3].note == "jwxu/"


def test_of_quick_marks_the_last_one_counts(seen, review):
    seen.page.focus(".scroll")
    seen.page.keyboard.press("Tab")
    for key in "wxwxuwx":
        seen.page.keyboard.press(key)
    seen.page.keyboard.press("n")
    seen.page.keyboard.type("a note")
    seen.page.keyboard.press("Enter")
    seen.page.keyboard.press("w")
    until(seen.page, lambda: review.marks.get(0) == Mark("wrong label", "a note"))


def test_few_stops_for_tab(seen):
    """The table is one stop and its current row's controls, not two hundred."""
    stops = "[...document.querySelectorAll('button, input, select, [tabindex]')]"
    reachable = seen.page.evaluate(f"{stops}.filter(e => e.tabIndex >= 0 && !e.disabled && !e.hidden).length")
    assert reachable < 20


def test_hostile_text_is_text(seen):
    page = seen.page
    cell = page.locator("#rows tr").nth(1).locator(".text")
    shown = HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "␛")
    assert shown in cell.inner_text()
    assert page.title() == "u2a review"
    assert page.locator("table img").count() == 0
    assert page.locator("table script").count() == 0


def test_a_mark_that_is_not_saved_is_said(seen, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RawRows, "write", full)
    seen.page.locator("#rows tr").nth(0).get_by_role("button", name="exclude").click()
    until(seen.page, lambda: "No space left" in text_of(seen, "problem"))
    assert seen.page.locator("#rows tr").nth(0).get_attribute("class") in (None, "")
    assert any("507" in words for words in seen.complaints)  # Chromium notes it
    seen.complaints.clear()


def test_its_button_ends_the_server(address, visit):
    seen = visit(address)
    seen.page.click("#close")
    until(seen.page, lambda: "has ended" in text_of(seen, "counts"))
    until(seen.page, lambda: has_ended(address))
    seen.page.locator("#rows tr").nth(0).get_by_role("button", name="exclude").click()
    until(seen.page, lambda: "has ended" in text_of(seen, "problem"))


def test_a_wrong_token_is_refused(address, visit):
    seen = visit(address[:-2] + "/")
    assert "wrong or missing token" in seen.page.inner_text("body")
    assert seen.complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_everybody_can_read_it(address, visit, scheme, width):
    seen = visit(address, color_scheme=scheme, viewport={"width": width, "height": 800})
    seen.page.wait_for_selector("#rows tr.marked")
    assert seen.faults_of_access() == []
    assert seen.overflow() <= 0
    assert seen.complaints == []


def test_no_other_page_can_read_or_mark(address, visit, review, tmp_path):
    """A page of another origin that even knows the address: the browser and the guard both refuse."""
    (tmp_path / "evil.html").write_text(
        f"""<script>
        const tries = [
          fetch("{address}rows").then(r => r.text()),
          fetch("{address}mark", {{method: "POST", headers: {{"Content-Type": "application/json"}},
            body: '{{"row": 5, "reason": "exclude"}}'}}).then(r => r.text()),
          fetch("{address}mark", {{method: "POST", mode: "no-cors",
            body: '{{"row": 5, "reason": "exclude"}}'}}).then(r => r.text()),
        ];
        Promise.allSettled(tries).then(all => {{
          document.title = JSON.stringify(all.map(each => each.value || ""));
        }});
        </script><iframe src="{address}"></iframe>""",
        encoding="utf-8",
    )
    seen = visit((tmp_path / "evil.html").as_uri())
    until(seen.page, lambda: seen.page.title().startswith("["))
    assert json.loads(seen.page.title()) == ["", "", ""]
    assert list(review.marks) == [2]
    framed = [frame for frame in seen.page.frames if frame != seen.page.main_frame]
    assert all(frame.query_selector("#rows") is None for frame in framed)


def test_on_a_phone_a_row_is_a_card_with_its_marks_in_sight(address, visit):
    page = visit(address, viewport={"width": 390, "height": 844}).page
    page.wait_for_selector("#rows tr")
    mark = page.locator("#rows tr").first.get_by_text("wrong label")
    box = mark.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    shown = page.evaluate("getComputedStyle(document.querySelector('td.number'), '::before').content")
    assert shown.startswith('"impact')
