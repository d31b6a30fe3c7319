"""`u2a align` says how much answers repeat themselves and each other, and warns where that rose."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from problems import BAD, GOOD, PAIRS
from u2a import answers
from u2a.alignment import measuring, outer_loop
from u2a.cli import app
from u2a.ngrams import AnswerShares


def align(tmp_path, monkeypatch, shares, **more):
    """`u2a align` of a tiny model whose answers have these shares, one after the other; its summary."""
    pairs = [share if isinstance(share, tuple) else (share, 0.0) for share in shares]
    found = iter(AnswerShares(np.full(4, own), np.full(4, other)) for own, other in pairs)
    for module in (answers, measuring, outer_loop):
        monkeypatch.setattr(module, "greedy_answers", lambda *_: next(found))
    pairs = [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in PAIRS]
    flags = {
        "--model": str(save_tiny(tmp_path / "model", "llama")),
        "--negatives": jsonl(tmp_path / "bad.jsonl", [{"prompt": p, "completion": a} for p, a in BAD]),
        "--preferences": jsonl(tmp_path / "pairs.jsonl", pairs),
        "--retain": jsonl(tmp_path / "good.jsonl", [{"prompt": p, "completion": a} for p, a in GOOD]),
        "--output": str(tmp_path / "run"),
        "--max-steps": "1",
        "--outer-steps": "1",
        "--scoring": "exact",
        **more,
    }
    result = CliRunner().invoke(app, ["align", *(word for pair in flags.items() for word in pair)])
    assert result.exit_code in (0, 1), result.output
    assert next(found, None) is None  # as often as there are shares, and no more
    return json.loads((tmp_path / "run" / "summary.json").read_text()), result.output


def row_of(summary, metric="repetition in answers"):
    return next(row for row in summary["table"] if row["metric"] == metric)


@pytest.mark.parametrize("after, warned", [(0.35, True), (0.11, False)])
def test_without_the_guard_answers_that_run_in_circles_are_told(tmp_path, monkeypatch, after, warned):
    off = {"--max-repetition-rise": "1"}
    summary, output = align(tmp_path, monkeypatch, [0.02, after], **off)
    row = row_of(summary)
    assert (row["original"], row["aligned"]) == pytest.approx((0.02, after))
    assert row["change_interval"] == pytest.approx([after - 0.02] * 2)
    assert row["better"] == "lower"
    said = [line for line in summary["warnings"] if "greedy answers run in circles" in line]
    assert bool(said) is warned
    if warned:
        assert "35% of their 4-grams stood in them before, 2% in the original's" in said[0]
        assert "run in circles" in output


def test_the_guard_halves_the_rate_until_they_do_not(tmp_path, monkeypatch):
    """Measured at the start and after each try; the kept point's is not measured again."""
    summary, output = align(tmp_path, monkeypatch, [0.02, 0.35, 0.3, 0.04], **{"--min-gain": "-1"})
    assert row_of(summary)["original"] == pytest.approx(0.02)
    assert "run in circles" not in output
    log = (tmp_path / "run" / "run.log").read_text()
    assert (
        log.count("repetition in greedy answers rose by") == 4
    )  # where a try ends, where the rate is halved
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    points = [m for m in metrics if m.get("event") == "measurement"]
    assert [p["repetition"] for p in points] == pytest.approx([0.02, 0.35, 0.3, 0.04])
    assert [p["admissible"] for p in points] == [True, False, False, True]
    assert [p["learning_rate"] for p in points] == pytest.approx([1e-4, 1e-4, 5e-5, 2.5e-5])


@pytest.mark.parametrize("after, warned", [(0.75, True), (0.45, False)])
def test_answers_that_became_alike_are_told(tmp_path, monkeypatch, after, warned):
    summary, output = align(tmp_path, monkeypatch, [(0.0, 0.2), (0.0, after)], **{"--min-gain": "-1"})
    row = row_of(summary, "overlap between answers")
    assert (row["original"], row["aligned"]) == pytest.approx((0.2, after))
    said = [line for line in summary["warnings"] if "greedy answers became alike" in line]
    assert bool(said) is warned
    if warned:
        assert "75% of an answer's 2-grams stand in another one, 20% in the original's" in said[0]
    assert ("became alike" in output) is warned
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [m["overlap"] for m in metrics if m.get("event") == "measurement"] == pytest.approx([0.2, after])
