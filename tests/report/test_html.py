"""`write_report`: what stands on the page, what must never get out of its quotes, and broken run folders."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from plotly.offline import get_plotlyjs

from run_folders import (
    HOSTILE,
    align_run,
    compare_run,
    evaluate_run,
    large_run,
    verify_run,
    write_impact,
    write_summary,
    write_weights,
)
from u2a.report import page as page_module
from u2a.report.html import write_report
from u2a.report.wording import duration, excerpt, memory, number, visible
from u2a.types import UserError


@pytest.fixture(name="run")
def run_folder(tmp_path: Path) -> Path:
    return align_run(tmp_path)


def inflated(block: str) -> Any:
    """What a data block of the page holds."""
    return json.loads(gzip.decompress(base64.b64decode(block)))


class Page(HTMLParser):
    """The page as a browser would see it: its elements, its attributes, its text, its scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        found = re.findall(r"<script([^>]*)>(.*?)</script", self.source, re.S | re.I)
        self.blocks = {re.search(r'id="([^"]*)"', head)[1]: body for head, body in found if "id=" in head}
        self.scripts = [body for head, body in found if "id=" not in head]
        self.own = self.source  # what is ours of the page: no base64
        for body in self.blocks.values():
            self.own = self.own.replace(body, "")
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
        return {key.removeprefix("r1-"): plot for key, plot in inflated(self.blocks["plot-data"]).items()}

    @property
    def negatives(self) -> dict:
        return inflated(self.blocks["r1-negatives-data"])


def test_page_answers_the_readers_questions_in_order(run: Path) -> None:
    page = Page(write_report(run))
    titles = re.findall(r"<h([23])[^>]*>([^<]*)</h", page.source)
    assert [title for level, title in titles if level == "2"] == [
        "Did alignment improve, and what did it cost?",
        "Which negatives mattered?",
        "How did the weights move?",
        "What happened step by step?",
        "What did each phase cost?",
        "How to reproduce it",
    ]
    assert [title for level, title in titles if level == "3"] == [
        "Impact of the negatives",
        "Predicted gain against number of negatives",
        "Gain against utility cost",
        "All negatives",
        "Most worthwhile to unlearn",
        "Least worthwhile to unlearn",
        "Weights over outer steps",
        "J, U and KL while unlearning",
    ]
    assert page.source.index("2 of 4 negatives are worth unlearning.") < page.source.index("<h2")
    assert "u2a align --config config.yaml" in page.text
    assert "the seed is 7" in page.text
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
    assert list(page.figures) == ["impact", "cumulative", "cost", "weights", "progress"]
    for figure in page.figures.values():
        assert go.Figure(uncoloured(figure)).data
    assert page.policy.startswith("default-src 'none'; ")
    plotly = gzip.decompress(base64.b64decode(page.blocks["plotly"])).decode()
    assert plotly == get_plotlyjs()
    for script in [*page.scripts, plotly]:
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
    assert hostile.tags.count("script") == harmless.tags.count("script") == 7
    assert {(tag, name) for tag, name, _ in hostile.attributes} <= {(t, n) for t, n, _ in harmless.attributes}
    assert hostile.scripts == harmless.scripts
    for block in hostile.blocks.values():
        assert re.fullmatch(r"[A-Za-z0-9+/]+=*", block)
    packed = json.dumps([hostile.figures, hostile.negatives], ensure_ascii=False)
    for words in (hostile.own, packed):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e\ud800]", words)
    assert "␀␛]0;owned␇" in hostile.text
    assert "{{ 7*7 }}" in hostile.text


def test_hover_text_is_escaped_for_plotly(run: Path) -> None:
    write_impact(run, ids=["<b>bold</b>", "b", "c", "d"], text="<i>%{x} $y$")
    hover = Page(write_report(run)).figures["cost"]["data"]
    texts = [text for trace in hover for text in trace.get("text", [])]
    assert "row 0, id &lt;b&gt;bold&lt;/b&gt;, weight 1.25: &lt;i&gt;%{x} &#36;y&#36; 0" in texts
    assert not any(set(text) & set("<$") for text in texts)


def test_without_text_no_row_text_no_path(run: Path) -> None:
    with_text = write_report(run).read_text(encoding="utf-8")
    assert "PROMPT 0" in with_text
    assert "RESPONSE 2" in with_text
    assert "/home/me/negatives.jsonl" in with_text
    page = Page(write_report(run, with_text=False))
    assert set(page.negatives) >= {"row", "impact", "weight"}
    without = page.own + json.dumps([page.figures, page.negatives])
    assert "PROMPT" not in without
    assert "RESPONSE" not in without
    assert "/home" not in without
    assert "negatives.jsonl" in without
    for page in (with_text, without):
        assert "hf_x" not in page


@pytest.mark.parametrize("limit", [page_module.PAGE_BYTES, 100])
def test_page_loads_nothing_from_elsewhere(run: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All links are to its own parts."""
    monkeypatch.setattr(page_module, "PAGE_BYTES", limit)
    source = Page(write_report(run)).own
    assert not re.search(r"<[^>]*\b(src|srcset|action|data)\s*=", source)
    links = re.findall(r"<[^>]*\bhref\s*=[^>]*>", source)
    assert links[0] == '<a class="skip" href="#main">'
    assert all(re.fullmatch(r'<a href="#r1-[\w-]+">', link) for link in links[1:])
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|import\(|https?://", source)


def test_page_that_would_be_too_large_gives_up_texts_first_and_figures_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = large_run(tmp_path, 600)
    whole = write_report(run).stat().st_size
    assert whole <= page_module.PAGE_BYTES
    monkeypatch.setattr(page_module, "PAGE_BYTES", whole - 30_000)
    page = Page(write_report(run))
    assert len(page.source) <= whole - 30_000
    cut = int(re.search(r"Texts are cut to (\d+) characters", page.text)[1])
    assert cut in page_module.LENGTHS
    longest = max(page.negatives["response"], key=len)
    assert len(longest.partition("…")[0]) == cut
    assert "plotly" in page.blocks

    monkeypatch.setattr(page_module, "PAGE_BYTES", 350_000)
    page = Page(write_report(run))
    assert len(page.source) < 350_000
    assert "plotly" not in page.blocks
    assert page.source.count("<details open>") == 5
    assert "negatives-data" in page.source


def test_ten_thousand_negatives_fit(tmp_path: Path) -> None:
    """With whole texts of some 420 characters, none of which compresses away."""
    begin = time.perf_counter()
    page = Page(write_report(large_run(tmp_path)))
    assert len(page.source) < 5_000_000
    assert len(page.negatives["row"]) == 10_000
    assert not any("more characters" in text for text in page.negatives["response"])
    assert time.perf_counter() - begin < 30


def test_impact_run_has_no_aligned_column_and_no_weights(run: Path) -> None:
    for name in ("weights.parquet", "metrics.jsonl"):
        (run / name).unlink()
    write_summary(run, "impact", "2 of 4 negatives are worth unlearning.", aligned=None)
    page = Page(write_report(run))
    for heading in ("aligned", "change", "weight"):
        assert f'<th scope="col">{heading}</th>' not in page.source
    assert 'data-sort="weight"' not in page.source
    assert "weight" not in page.negatives
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
        ("summary.json", "[" * 100_000),
        ("metrics.jsonl", "[" * 100_000 + "\n"),
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


@pytest.mark.parametrize(
    "make, name",
    [(evaluate_run, "evaluation.json"), (verify_run, "verify.json"), (compare_run, "comparison.json")],
)
def test_a_deeply_nested_file_is_named(tmp_path: Path, make: Callable[[Path], Path], name: str) -> None:
    run = make(tmp_path)
    (run / name).write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(UserError, match=f"{name}.*nested too deeply"):
        write_report(run)


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


def test_numbers_for_people() -> None:
    assert [number(x) for x in (None, float("nan"), float("inf"), 0.0, 3, 0.123456, 12345.6, 12345)] == [
        "–", "–", "–", "0", "3", "0.1235", "12,350", "12,345",
    ]  # fmt: skip
    assert [number(0.25, signed=True), number(-1e-6, signed=True), number(0.1234, digits=2)] == [
        "+0.25", "-1.00e-06", "0.12",
    ]  # fmt: skip
    assert [number(x, signed=True) for x in (0.0, -0.0, 2.0)] == ["0", "0", "+2"]
    assert [duration(x) for x in (0.123, 2.94, 99.0, 99.6, 1458.2, 3599.7, 11100.0, float("nan"))] == [
        "0.12 s", "2.9 s", "99 s", "1 min 40 s", "24 min 18 s", "1 h 0 min", "3 h 5 min", "–",
    ]  # fmt: skip
    assert [memory(0), memory(2**20), memory(3 * 2**30)] == ["–", "1 MiB", "3.00 GiB"]


def test_misleading_characters_become_visible() -> None:
    assert visible("a\tb\nc é 👩\u200d👧") == "a\tb\nc é 👩\u200d👧"
    assert visible("\x00\x1b\r\x7f\u202e\ud800") == "␀␛␍\\u007f\\u202e\\ud800"
    assert excerpt("  a \n b  " + "c" * 50, 6) == "a b c…"


def test_weights_of_one_outer_step_are_shown_by_rank(run: Path) -> None:
    write_weights(run, [[1.25, 0.75, 0.0, 0.0]])
    page = Page(write_report(run))
    assert "There was one outer step." in page.text
    (line,) = page.figures["weights"]["data"]
    assert (line["x"], line["y"]) == ([1, 2], [1.25, 0.75])


def test_weights_of_nothing_selected_are_said(run: Path) -> None:
    write_weights(run, [[0.0, 0.0, 0.0, 0.0]])
    page = Page(write_report(run))
    assert "They did not: nothing was selected." in page.text
    assert "weights" not in page.figures


def test_contents_lead_to_every_part(run: Path) -> None:
    page = Page(write_report(run))
    ids = {value for _, name, value in page.attributes if name == "id"}
    links = [value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert len(links) == 1 + 6  # the way past the head, and the parts
    assert set(links) <= ids


def test_the_end_of_a_run_comes_first_and_what_was_left_out_last(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    left = ["refusal is left out: it needs --safe-prompts", "only 5 rows"]
    summary |= {"end": "Better: J changed by +0.2.", "warnings": left}
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    page = Page(write_report(run))
    order = (
        "Better: J changed by +0.2.",
        "are worth unlearning",
        "only 5 rows",
        "Not measured: 1",
        "refusal is",
    )
    assert sorted(order, key=page.text.index) == list(order)


def test_an_evaluation_shows_intervals_and_only_sure_verdicts(tmp_path: Path) -> None:
    source = Page(write_report(evaluate_run(tmp_path))).source
    rows = [
        " ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in re.findall(r"<tr>.*?</tr>", source, re.S)
    ]
    assert (
        "held-out accuracy, summed ↑ share 0.5 0.45 to 0.55 0.7 0.65 to 0.75 +0.2 better +0.15 to +0.25"
        in rows
    )
    assert "refused ↑ share 0.3 0.25 to 0.35 0.31 0.26 to 0.36 +0.01 within noise -0.04 to +0.06" in rows
    assert "distinct ↑ share 0.5 0.8 +0.3" in rows
    assert "KL from the original ↓ share 0 -0.05 to 0.05 0.3 0.25 to 0.35 +0.3 +0.25 to +0.35" in rows


def test_answers_stand_side_by_side_unless_without_text(tmp_path: Path) -> None:
    run = evaluate_run(tmp_path, answer=HOSTILE, asked=f"{HOSTILE} Was it asked?")
    page = Page(write_report(run))
    order = ("test, row 0", "Was it asked? 0", "original 0", "mine 0")
    assert sorted(order, key=page.text.index) == list(order)
    assert "<script>alert" not in page.source
    without = Page(write_report(run, with_text=False))
    assert "What do the models answer?" not in without.text
    assert "Was it asked?" not in without.source


def test_an_evaluation_is_reproduced_with_its_models(tmp_path: Path) -> None:
    run = evaluate_run(tmp_path)
    config = {"models": ["/home/me/runs/align", "org/it's"], "seed": 0}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = """u2a evaluate /home/me/runs/align 'org/it'"'"'s' --config config.yaml"""
    assert command in Page(write_report(run)).text
    assert "u2a evaluate align " in Page(write_report(run, with_text=False)).text


def test_verify_runs_show_predicted_against_measured_after_the_cost(tmp_path: Path) -> None:
    text = Page(write_report(verify_run(tmp_path))).text
    assert text.index("What did each phase cost?") < text.index("May the scores be trusted?")
    assert text.index("May the scores be trusted?") < text.index("Predicted against measured")


def test_several_runs_stand_beside_each_other(tmp_path: Path) -> None:
    runs = [
        align_run(tmp_path / "a"),
        align_run(tmp_path / "b", kl_budget=0.2, only_here=1),
        compare_run(tmp_path),
    ]
    page = Page(write_report(*runs, output=tmp_path / "all.html"))
    titles = re.findall(r"<h2[^>]*>([^<]*)</h2>", page.source)
    assert titles == ["The runs beside each other", "align: run (1)", "align: run (2)", "compare: compared"]
    rows = [" ".join(re.sub(r"<[^>]*>", " ", r).split()) for r in re.findall(r"<tr>.*?</tr>", page.source)]
    assert "J ↑ nats -0.75 → -0.5 (+0.25) better -0.75 → -0.5 (+0.25) better -0.75" in rows
    assert "kl_budget 0.1 0.2 0.1" in rows
    assert not [row for row in rows if row.startswith(("max_nll_rise", "only_here"))]  # these do not differ
    assert set(page.blocks) == {"plot-data", "plotly", "r1-negatives-data", "r2-negatives-data"}
    figures = inflated(page.blocks["plot-data"])
    assert {"r1-impact", "r2-impact", "r3-methods"} < set(figures)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert not (runs[0] / "report.html").exists()


def test_several_runs_need_a_new_file(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--output is missing"):
        write_report(run, run)
    (tmp_path / "mine.html").write_text("precious", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.html is there already"):
        write_report(run, output=tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text(encoding="utf-8") == "precious"
