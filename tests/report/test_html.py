"""`write_report`: what stands on the page, what must never get out of its quotes, and broken run folders."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from plotly.offline import get_plotlyjs

from u2a.report import html as page_module
from u2a.report.html import extremes, write_report
from u2a.report.plots import SCATTER_POINTS, cumulative_gain, gain_and_cost, impact_histogram, progress
from u2a.report.scores import Measured, Scores
from u2a.report.wording import excerpt, memory, number, visible
from u2a.types import UserError

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`&amp;{{ 7*7 }}<!-- "
    "\x00\x1b]0;owned\x07\u2028\u202e<a href=javascript:alert(3)>x</a>"
)


@pytest.fixture(name="run")
def run_folder(tmp_path: Path) -> Path:
    """An `align` run of four negatives; two of them selected."""
    run = tmp_path / "run"
    run.mkdir()
    config = {
        "model": "org/model",
        "negatives": "/home/me/negatives.jsonl",
        "restart": False,
        "hub_token": "hf_x",
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (run / "versions.json").write_text(json.dumps({"u2a": "0.1.0", "git_commit": None}), encoding="utf-8")
    write_summary(run, "align", "2 of 4 negatives are worth unlearning.", aligned=-0.5)
    write_impact(run)
    weights = {"row": [0, 1, 2, 3], "id": list("abcd"), "weight": [1.25, 0.75, 0.0, 0.0]}
    pq.write_table(pa.table(weights | {"selected": [True, True, False, False]}), run / "weights.parquet")
    point = {
        "event": "measurement",
        "outer_step": 0,
        "step": 0,
        "objective": -0.7,
        "utility": -2.0,
        "kl": 0.0,
    }
    points = [point, point | {"outer_step": 1, "step": 5, "kl": None, "admissible": False}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points), encoding="utf-8")
    return run


def write_impact(
    run: Path, *, ids: list[str] | None = None, text: str = "RESPONSE", prompt: str = "PROMPT"
) -> None:
    columns = {
        "row": [0, 1, 2, 3],
        "id": ids or list("abcd"),
        "prompt": [f"{prompt} {i}" for i in range(4)],
        "response": [f"{text} {i}" for i in range(4)],
        "impact": [0.5, 0.25, -0.125, None],
        "utility_cost": [0.1, -0.2, 0.3, 0.4],
        "loss": [1.0] * 4,
        "n_tokens": [7, 8, 9, 10],
        "impact_se": [0.01, None, None, None],
    }
    pq.write_table(pa.table(columns), run / "impact.parquet")


def write_summary(run: Path, command: str, outcome: str, aligned: float | None, metric: str = "J") -> None:
    table = [
        {"metric": metric, "unit": "nats", "better": "higher", "original": -0.75, "aligned": aligned},
        {"metric": "retain NLL", "unit": "nats/token", "better": "lower", "original": 2.0, "aligned": None},
        {"metric": "broken", "unit": "", "better": "", "original": float("nan"), "aligned": None},
    ]
    phases = [{"name": "scoring", "seconds": 1.5, "peak_bytes": 3 * 2**20}]
    counts = {"negatives": 4, "validation": 5} | ({"selected": 2} if command == "align" else {})
    check = {"examples": 4, "relative_error": 0.002, "epsilon": 0.1, "passed": True}
    summary = {"command": command, "outcome": outcome, "table": table, "phases": phases, "counts": counts}
    text = json.dumps(summary | {"self_check": check, "warnings": ["only 5 validation rows"]})
    (run / "summary.json").write_text(text, encoding="utf-8")


class Page(HTMLParser):
    """The page as a browser would see it: its elements, its attributes, its text, its scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.scripts = re.findall(r"<script[^>]*>(.*?)</script", self.source, re.S | re.I)
        self.own = self.source.replace(get_plotlyjs(), "")  # what is ours of the page
        self.feed(self.own)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def policy(self) -> str:
        return next(value for _, _, value in self.attributes if value.startswith("default-src"))

    @property
    def figures(self) -> dict:
        return json.loads(self.scripts[0])


def scores(impact: list[float], **columns: list) -> Scores:
    n = len(impact)
    given = {name: np.array(values) for name, values in columns.items()}
    return Scores(
        row=np.arange(n),
        ids=[str(i) for i in range(n)],
        impact=np.array(impact, float),
        cost=given.get("cost", np.ones(n)),
        se=np.full(n, np.nan),
        n_tokens=np.ones(n),
        weight=given.get("weight"),
        selected=given.get("selected"),
    )


def test_page_holds_every_section_in_order(run: Path) -> None:
    page = Page(write_report(run))
    titles = re.findall(r"<h2[^>]*>([^<]*)</h2>", page.source)
    assert titles == [
        "Summary",
        "Impact of the negatives",
        "Predicted gain against number of negatives",
        "Gain against utility cost",
        "J, U and KL while unlearning",
        "The negatives",
        "What it cost",
        "How to reproduce it",
    ]
    assert page.source.index("2 of 4 negatives are worth unlearning.") < page.source.index("<h2")
    assert "u2a align --config config.yaml" in page.text
    assert "only 5 validation rows" in page.text
    assert "3 MiB" in page.text


def test_summary_table_shows_change_direction_and_dashes(run: Path) -> None:
    source = Page(write_report(run)).source
    rows = [
        " ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in re.findall(r"<tr>.*?</tr>", source, re.S)
    ]
    assert "J ↑ nats -0.75 -0.5 +0.25 better" in rows
    assert "retain NLL ↓ nats/token 2 – –" in rows
    assert "broken – – –" in rows
    assert "(higher is better)" in source


def test_every_table_has_a_caption_and_scoped_headings(run: Path) -> None:
    page = Page(write_report(run))
    assert page.tags.count("table") == page.tags.count("caption") > 5
    scopes = [value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")]
    assert len(scopes) == page.tags.count("th")
    assert set(scopes) == {"col", "row", "rowgroup"}


def test_figures_are_valid_plotly_and_scripts_match_the_policy(run: Path) -> None:
    page = Page(write_report(run))
    assert list(page.figures) == ["impact", "cumulative", "cost", "progress"]
    for figure in page.figures.values():
        assert go.Figure(uncoloured(figure)).data
    assert page.policy.startswith("default-src 'none'; ")
    for script in page.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.policy
    assert "unsafe-inline" not in page.policy.split("style-src")[0]


def uncoloured(value: object) -> object:
    """The figure with a real colour for every CSS variable, as the page's script paints it."""
    if isinstance(value, dict):
        return {key: uncoloured(item) for key, item in value.items()}
    if isinstance(value, list):
        return [uncoloured(item) for item in value]
    return "#123456" if isinstance(value, str) and value.startswith("--") else value


@pytest.mark.parametrize("with_text", [True, False])
def test_hostile_text_stays_text(run: Path, with_text: bool) -> None:
    write_report(run, with_text=with_text)
    harmless = Page(run / "report.html")
    write_impact(run, ids=[f"{HOSTILE} {i}" for i in range(4)], text=HOSTILE, prompt=HOSTILE)
    write_summary(run, "align", HOSTILE, -0.5, metric="\ud800" + HOSTILE)
    (run / "versions.json").write_text(json.dumps({HOSTILE: HOSTILE, "a": "\ud800"}), encoding="utf-8")
    config = {"model": HOSTILE, HOSTILE: [HOSTILE, {"deep": HOSTILE}]}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    hostile = Page(write_report(run, with_text=with_text))

    assert set(hostile.tags) <= set(harmless.tags)
    assert hostile.tags.count("script") == harmless.tags.count("script") == 3
    assert {(tag, name) for tag, name, _ in hostile.attributes} <= {(t, n) for t, n, _ in harmless.attributes}
    assert hostile.scripts[1:] == harmless.scripts[1:]
    assert not re.search("[<>&\u2028\u2029]", hostile.scripts[0])
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e\ud800]", hostile.own)
    assert "␀␛]0;owned␇" in hostile.text
    assert "{{ 7*7 }}" in hostile.text


def test_hover_text_is_escaped_for_plotly(run: Path) -> None:
    write_impact(run, ids=["<b>bold</b>", "b", "c", "d"], text="<i>%{x}")
    hover = Page(write_report(run)).figures["cost"]["data"]
    texts = [text for trace in hover for text in trace["text"]]
    assert "row 0, id &lt;b&gt;bold&lt;/b&gt;, weight 1.25: &lt;i&gt;%{x} 0" in texts
    assert not any("<" in text for text in texts)


def test_without_text_no_row_text_no_path(run: Path) -> None:
    with_text = write_report(run).read_text(encoding="utf-8")
    assert "PROMPT 0" in with_text
    assert "RESPONSE 2" in with_text
    assert "/home/me/negatives.jsonl" in with_text
    without = Page(write_report(run, with_text=False)).own
    assert "PROMPT" not in without
    assert "RESPONSE" not in without
    assert "/home" not in without
    assert "negatives.jsonl" in without
    for page in (with_text, without):
        assert "hf_x" not in page


@pytest.mark.parametrize("limit", [page_module.PAGE_BYTES, 100])
def test_page_loads_nothing_from_elsewhere(run: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "PAGE_BYTES", limit)
    source = Page(write_report(run)).own
    assert not re.search(r"\b(src|href|srcset|action|data)\s*=", source)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|import\(|https?://", source)


def test_page_that_would_be_too_large_shows_numbers_instead(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write_report(run).stat().st_size <= page_module.PAGE_BYTES
    monkeypatch.setattr(page_module, "PAGE_BYTES", 100_000)
    page = Page(write_report(run))
    assert len(page.source) < 100_000
    assert "script" not in page.tags
    assert "script-src 'none'" in page.policy
    assert page.source.count("<details open>") == 4


def test_impact_run_has_no_aligned_column_and_no_weights(run: Path) -> None:
    for name in ("weights.parquet", "metrics.jsonl"):
        (run / name).unlink()
    write_summary(run, "impact", "2 of 4 negatives are worth unlearning.", aligned=None)
    page = Page(write_report(run))
    for heading in ("aligned", "change", "weight"):
        assert f'<th scope="col">{heading}</th>' not in page.source
    assert list(page.figures) == ["impact", "cumulative", "cost"]
    assert "shapes" not in page.figures["cumulative"]["layout"]
    assert "u2a impact --config config.yaml" in page.text


def test_run_without_any_finite_impact_has_a_page(run: Path) -> None:
    table = pq.read_table(run / "impact.parquet")
    column = table.column_names.index("impact")
    pq.write_table(table.set_column(column, "impact", pa.nulls(4, pa.float64())), run / "impact.parquet")
    assert "No negative has a finite impact." in Page(write_report(run)).text


@pytest.mark.parametrize("name", ["config.yaml", "versions.json", "summary.json", "impact.parquet"])
def test_missing_file_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(UserError, match=re.escape(name)):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.yaml", "a: [1"),
        ("config.yaml", "just text"),
        ("versions.json", "[]"),
        ("summary.json", '{"command": "align"'),
        ("summary.json", '{"command": "align", "outcome": "x"}'),
        ("summary.json", '{"command": 3, "outcome": "x", "table": []}'),
        ("summary.json", '{"command": "align", "outcome": "x", "table": [{"metric": "J", "original": "1"}]}'),
        ("summary.json", '{"command": "align", "outcome": "x", "table": [{"metric": "J", "better": "up"}]}'),
        ("summary.json", '{"command": "align", "outcome": "x", "table": 7}'),
        (
            "summary.json",
            '{"command": "align", "outcome": "x", "table": [], "counts": {"negatives": "many"}}',
        ),
        ("impact.parquet", "no parquet"),
        ("weights.parquet", "no parquet"),
        ("metrics.jsonl", "{broken\n{}\n"),
        ("metrics.jsonl", '{"event": "measurement", "outer_step": "x", "step": 1}\n'),
    ],
)
def test_broken_file_is_named_and_the_old_report_kept(run: Path, name: str, content: str) -> None:
    (run / "report.html").write_text("old", encoding="utf-8")
    (run / name).write_text(content, encoding="utf-8")
    before = sorted(run.iterdir())
    with pytest.raises(UserError, match=re.escape(name)):
        write_report(run)
    assert (run / "report.html").read_text(encoding="utf-8") == "old"
    assert sorted(run.iterdir()) == before


def test_missing_column_is_named(run: Path) -> None:
    table = pq.read_table(run / "impact.parquet")
    pq.write_table(table.drop_columns(["utility_cost"]), run / "impact.parquet")
    with pytest.raises(UserError, match=r"impact\.parquet: column utility_cost is missing"):
        write_report(run)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such run folder"):
        write_report(tmp_path / "nowhere")


def test_last_line_cut_off_by_an_interruption_is_left_out(run: Path) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "measurement", "outer_st')
    dots = Page(write_report(run)).figures["progress"]["data"][1]
    assert dots["x"] == [0, 5]


def test_extremes_never_overlap_and_leave_out_what_is_not_finite() -> None:
    assert extremes(scores([0.5, float("nan"), -1.0, 0.25])) == ([0, 3], [2])
    best, worst = extremes(scores(list(range(100))))
    assert best == list(range(99, 79, -1))
    assert worst == list(range(20))


def test_histogram_keeps_zero_on_the_left() -> None:
    """Of -1, 0, 0 and 1 only the last raises alignment: three in bars left of zero, one right of it."""
    bars = impact_histogram(scores([-1.0, 0.0, 0.0, 1.0])).figure["data"][0]
    left = sum(y for x, y in zip(bars["x"], bars["y"], strict=True) if x < 0)
    right = sum(y for x, y in zip(bars["x"], bars["y"], strict=True) if x > 0)
    assert (left, right) == (3, 1)
    assert set(zip(np.sign(bars["x"]), bars["marker"]["color"], strict=True)) == {
        (-1, "--bad"),
        (1, "--good"),
    }


@pytest.mark.parametrize(
    "impact", [[0.0], [0.0, 0.0], [1e-300], [-2.0], [5.0, 5.0], list(np.linspace(-1, 9, 500))]
)
def test_histogram_counts_every_negative_once(impact: list[float]) -> None:
    plot = impact_histogram(scores(impact))
    assert sum(plot.figure["data"][0]["y"]) == len(impact)
    assert sum(row[-1] for row in plot.rows) == len(impact)


def test_cumulative_gain_sums_from_the_largest() -> None:
    """Sorted 4, 1, -2: sums 4, 5, 3; the largest is reached with two."""
    plot = cumulative_gain(scores([1.0, -2.0, 4.0]), cut=1)
    assert plot.figure["data"][0]["x"] == [0, 1, 2, 3]
    assert plot.figure["data"][0]["y"] == [0, 4, 5, 3]
    assert "best 2 of 3" in plot.caption
    assert plot.figure["layout"]["shapes"][0]["x0"] == 1
    assert "shapes" not in cumulative_gain(scores([1.0]), cut=None).figure["layout"]


def test_scatter_marks_the_selected_and_counts_quarters() -> None:
    plot = gain_and_cost(
        scores([2.0, 1.0, -1.0], cost=[1.0, -1.0, 1.0], selected=[True, False, False], weight=[1, 0, 0]), {}
    )
    assert [(trace["name"], trace["y"]) for trace in plot.figure["data"]] == [
        ("not selected", [1, -1]),
        ("selected", [2]),
    ]
    assert [row[-2:] for row in plot.rows] == [[1, 1], [1, 0], [1, 0], [0, 0]]


def test_scatter_of_many_negatives_is_thinned() -> None:
    plot = gain_and_cost(scores(list(np.linspace(-1, 1, 5000))), {})
    assert len(plot.figure["data"][0]["x"]) == SCATTER_POINTS
    assert "1,000 of 5,000 are drawn" in plot.caption


@pytest.mark.parametrize("restart, begin", [(False, -0.4), (True, -0.7)])
def test_progress_draws_each_inner_run_from_its_beginning(restart: bool, begin: float) -> None:
    """Outer step 1 is tried twice (its learning rate was halved); outer step 2 follows at step 10 + 5."""

    def point(outer: int, step: int, j: float, best: bool) -> Measured:
        return Measured(outer, step, j, -2.0, 0.0, admissible=True, best=best)

    points = [
        point(0, 0, -0.7, True),
        point(1, 5, -0.9, False),
        point(1, 5, -0.4, True),
        point(1, 10, -0.5, False),
    ]
    plot = progress([*points, point(2, 5, -0.3, True)], restart=restart)
    line, dots = plot.figure["data"][:2]
    assert line["x"] == [0, None, 0, 5, None, 0, 5, 10, None, 10, 15]
    assert line["y"] == [-0.7, None, -0.7, -0.9, None, -0.7, -0.4, -0.5, None, begin, -0.3]
    assert dots["x"] == [0, 5, 5, 10, 15]
    assert [shape["x0"] for shape in plot.figure["layout"]["shapes"]] == [10]


def test_numbers_for_people() -> None:
    assert [number(x) for x in (None, float("nan"), float("inf"), 0.0, 3, 0.123456, 12345.6)] == [
        "–", "–", "–", "0", "3", "0.1235", "12,346",
    ]  # fmt: skip
    assert [number(0.25, signed=True), number(-1e-6, signed=True), number(0.1234, digits=2)] == [
        "+0.25", "-1.00e-06", "0.12",
    ]  # fmt: skip
    assert [memory(0), memory(2**20), memory(3 * 2**30)] == ["–", "1 MiB", "3.00 GiB"]


def test_misleading_characters_become_visible() -> None:
    assert visible("a\tb\nc é 👩\u200d👧") == "a\tb\nc é 👩\u200d👧"
    assert visible("\x00\x1b\r\x7f\u202e\ud800") == "␀␛␍\\u007f\\u202e\\ud800"
    assert excerpt("  a \n b  " + "c" * 50, 6) == "a b c…"
