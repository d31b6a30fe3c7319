"""The demo from end to end, with a tiny random model in the demo model's place."""

import json

import pytest
from typer.testing import CliRunner

from cases import save_tiny
from u2a.cli import app
from u2a.models.demo_model import NAME


@pytest.fixture
def tiny_demo(tmp_path, monkeypatch):
    save_tiny(tmp_path / "cache" / NAME, "qwen")
    monkeypatch.setenv("U2A_CACHE", str(tmp_path / "cache"))
    return tmp_path / "run"


def test_the_demo_runs_and_shows_what_it_measured(tiny_demo):
    result = CliRunner().invoke(app, ["demo", "--output", str(tiny_demo)])
    assert result.exit_code in (0, 1), result.output
    for words in (
        "Original beside aligned",
        "held-out margin, summed",
        "Three prompts",
        "pretrained",
        "Most worth unlearning",
        "Least worth unlearning",
        "Flagged negatives",
        "Whole demo",
    ):
        assert words in result.output
    assert (tiny_demo / "original" / "adapter_model.safetensors").is_file()
    assert (tiny_demo / "align" / "adapter" / "adapter_model.safetensors").is_file()
    asked = (tiny_demo / "align" / "answers.jsonl").read_text().splitlines()
    assert len(asked) == 9  # three prompts, three models
    assert "What do the models answer?" in (tiny_demo / "align" / "report.html").read_text()
    counts = json.loads((tiny_demo / "align" / "summary.json").read_text())["counts"]
    assert counts["negatives"] == 96
    assert counts["validation"] == counts["test"] == counts["retain"] == 32


def test_flags_never_reach_the_run(tiny_demo):
    """The flag of a row is ground truth for the last line only: without flags, the same scores."""
    CliRunner().invoke(app, ["demo", "--output", str(tiny_demo)])
    import pyarrow.parquet as pq

    columns = pq.read_table(tiny_demo / "align" / "impact.parquet").column_names
    assert "flag" not in columns
    assert "extra" not in columns
