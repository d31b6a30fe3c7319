"""Figures on paper: the same as the page's, from the same numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from run_folders import HOSTILE, align_run, compare_run, evaluate_run, large_run, verify_run, write_impact
from u2a.report.run_view import read_run
from u2a.types import UserError

pytest.importorskip("matplotlib", reason="no matplotlib: pip install -e '.[plots]'")

from u2a.report import static_plots
from u2a.report.static_plots import draw, write_plots

KINDS = [align_run, large_run, evaluate_run, verify_run, compare_run]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_figure_of_the_page_is_drawn(
    tmp_path: Path, make: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_plots, "DOTS_PER_INCH", 50)  # many pixels take long
    run = make(tmp_path)
    plots = {plot.key: plot for plot in read_run(run, with_text=False).all_plots}
    written = write_plots([run], tmp_path / "paper", "png")
    assert [path.name for path in written] == [f"{key}.png" for key in plots]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "paper").iterdir()} == {path.name for path in written}


def test_svg_holds_words_and_is_the_same_every_time(tmp_path: Path) -> None:
    run = compare_run(tmp_path)
    first, second = (write_plots([run], tmp_path / name, "svg") for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    text = first[0].read_text(encoding="utf-8")
    assert "gain of the held-out margin, nats" in text
    assert "&lt;b&gt;dpo&lt;/b&gt; $x_1$" in text  # a method's name, as it is, escaped for XML alone


def test_outer_steps_are_whole_and_letters_without_a_glyph_are_no_fault(tmp_path: Path) -> None:
    run = large_run(tmp_path, 50)
    plots = {plot.key: plot for plot in read_run(run, with_text=False).all_plots}
    assert draw(plots["weights"]).axes[0].get_xticks().tolist() == [1, 2, 3]
    text = (compared := compare_run(tmp_path) / "comparison.json").read_text(encoding="utf-8")
    compared.write_text(text.replace("dpo", "\u4e2d\u6587"), encoding="utf-8")
    assert len(write_plots([compared.parent], tmp_path / "paper", "png")) == 4


def test_marks_stand_at_the_names_of_methods_and_metrics(tmp_path: Path) -> None:
    plots = {plot.key: plot for plot in read_run(compare_run(tmp_path), with_text=False).all_plots}
    (panel,) = draw(plots["metrics"]).axes
    assert [words.get_text() for words in panel.get_yticklabels()] == ["<b>dpo</b> $x_1$", "u2a"]
    assert [words.get_text() for words in panel.get_xticklabels()] == [
        "held-out margin, summed",
        "perplexity of retain texts",
    ]
    assert (panel.get_xlim(), panel.get_ylim()) == ((-0.5, 1.5), (-0.5, 1.5))


def test_points_and_bars_are_the_pages(tmp_path: Path) -> None:
    plots = {plot.key: plot for plot in read_run(large_run(tmp_path, 200), with_text=False).all_plots}

    bars = draw(plots["impact"]).axes[0].patches
    given = plots["impact"].figure["data"][0]
    assert [bar.get_height() for bar in bars] == given["y"]
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx(given["x"])

    curve = draw(plots["cumulative"]).axes[0].get_lines()[0]
    assert curve.get_ydata().tolist() == plots["cumulative"].figure["data"][0]["y"]

    panels = draw(plots["progress"]).axes
    assert [panel.get_ylabel() for panel in panels] == [
        "J\nnats",
        "U\nnats/token",
        "KL\nnats/token",
        "log-prob\nnats/token",
        "repetition\nshare",
    ]
    line = plots["progress"].figure["data"][0]
    drawn = panels[0].get_lines()[0].get_ydata()
    assert np.array_equal(drawn, np.array(line["y"], float), equal_nan=True)
    dots = sum(len(group.get_offsets()) for group in panels[0].collections)
    assert dots == len(plots["progress"].figure["data"][1]["x"])


def test_a_figure_without_a_point_is_drawn_empty(tmp_path: Path) -> None:
    run = verify_run(tmp_path)
    table = pq.read_table(run / "subsets.parquet").to_pydict()
    nothing = dict.fromkeys(("objective_change", "held_out_change"), pa.nulls(8, pa.float64()))
    pq.write_table(pa.table(table | nothing), run / "subsets.parquet")
    plots = {plot.key: plot for plot in read_run(run, with_text=False).all_plots}
    assert plots["truth"].figure["data"] == []
    assert draw(plots["truth"]).axes[0].get_xlabel() == "sum of predicted impacts (diagonal)"


def test_error_bars_and_the_line_of_the_ceiling_are_there(tmp_path: Path) -> None:
    plots = {plot.key: plot for plot in read_run(verify_run(tmp_path), with_text=False).all_plots}
    panel = draw(plots["agreement"]).axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["random", "diagonal"]
    (spans,) = (group.get_segments() for group in panel.collections)
    assert [[round(float(x), 6) for x, _ in span] for span in spans] == [[-0.3, 0.4], [0.5, 0.95]]
    assert any(line.get_xdata()[0] == 0.9 for line in panel.get_lines())


def test_no_text_of_negatives_is_drawn_and_several_runs_keep_apart(tmp_path: Path) -> None:
    runs = [align_run(tmp_path / "a"), align_run(tmp_path / "b")]
    write_impact(runs[0], ids=[HOSTILE + str(i) for i in range(4)], text="zebra")
    written = write_plots(runs, tmp_path / "paper", "svg")
    assert [path.name for path in written][:2] == ["run_1_-impact.svg", "run_1_-cumulative.svg"]
    assert len({path.name for path in written}) == 10
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert "zebra" not in text
        assert "<script" not in text


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "impact.png").write_text("precious", encoding="utf-8")
    run = align_run(tmp_path)
    with pytest.raises(UserError, match="paper is a file or not empty"):
        write_plots([run], tmp_path / "paper", "png")
    assert (tmp_path / "paper" / "impact.png").read_text(encoding="utf-8") == "precious"


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"u2a\[plots\]"):
        write_plots([align_run(tmp_path)], tmp_path / "paper", "png")
    assert not (tmp_path / "paper").exists()
