"""`u2a report`: where the page and the plots go, and what is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from run_folders import align_run, evaluate_run
from u2a.cli import app
from u2a.commands import schemas


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, words)])


def test_one_run_has_its_page_in_its_folder(tmp_path: Path) -> None:
    run = align_run(tmp_path)
    result = call(run)
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    assert "RESPONSE 0" in (run / "report.html").read_text(encoding="utf-8")
    assert call(run, "--no-text").exit_code == 0
    assert "RESPONSE 0" not in (run / "report.html").read_text(encoding="utf-8")


def test_several_runs_have_one_page_where_it_is_asked_for(tmp_path: Path) -> None:
    runs = [align_run(tmp_path), evaluate_run(tmp_path)]
    before = [sorted(run.iterdir()) for run in runs]
    result = call(*runs, "--output", tmp_path / "both.html")
    assert result.exit_code == 0, result.output
    assert "The runs beside each other" in (tmp_path / "both.html").read_text(encoding="utf-8")
    assert [sorted(run.iterdir()) for run in runs] == before


@pytest.mark.parametrize("words", [(), ("--output", "run/config.yaml")])
def test_several_runs_without_a_new_file_are_refused(
    tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = align_run(tmp_path)
    before = (run / "config.yaml").read_bytes()
    result = call(run, evaluate_run(tmp_path), *words)
    assert result.exit_code == 2
    assert "--output" in result.stderr
    assert (run / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plots_are_drawn_beside_the_page(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    result = call(align_run(tmp_path), "--plots", tmp_path / "paper", "--format", ending)
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "paper").iterdir()}
    assert names == {f"{key}.{ending}" for key in ("impact", "cumulative", "cost", "weights", "progress")}


def test_plots_into_a_full_folder_are_refused_before_the_page_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = align_run(tmp_path)
    result = call(run, "--plots", run)
    assert result.exit_code == 2
    assert "--plots" in result.stderr
    assert not (run / "report.html").exists()
    result = call(run, "--plots", tmp_path / "paper", "--output", tmp_path / "paper" / "page.html")
    assert result.exit_code == 2
    assert "name a place outside it" in result.stderr
    assert not (tmp_path / "paper").exists()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    result = call(align_run(tmp_path), "--plots", tmp_path / "paper", "--format", "pdf")
    assert result.exit_code == 2
    assert "svg" in result.stderr


def test_the_configuration_of_an_evaluation_can_be_given_again(tmp_path: Path) -> None:
    """It names the models, which the page's command repeats."""
    file = tmp_path / "config.yaml"
    file.write_text("models: [runs/align]\nanswers: 3\n", encoding="utf-8")
    assert schemas.EVALUATE.resolve(str(file), {})["answers"] == 3
