"""`u2a review`: what it serves, where marks go, what it refuses, and that `align` takes its result."""

import json
import re
import signal
import subprocess
import sys
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import yaml
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from problems import BAD, PAIRS
from scored_run import HOSTILE, negative_rows, run_of
from served_page import send, served
from u2a.cli import app
from u2a.commands import review


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def visit(monkeypatch):
    """Lets the page be served for as long as what is appended here takes."""
    visits = []

    def serve(page):
        with served(page):
            for each in visits:
                each(page)

    monkeypatch.setattr(review, "serve", serve)
    return visits


def test_marks_go_to_the_run_folder_and_it_can_go_on(tmp_path, visit):
    run, _ = run_of(tmp_path)
    visit.append(lambda page: send(page, "mark", {"row": 0, "reason": "exclude"}))
    result = call("review", run)
    assert result.exit_code == 0, result.output
    assert "5 negatives are left (0 wrong label, 1 exclude)" in result.output
    assert str(run / "reviewed.jsonl") in result.output
    visit[0] = lambda page: send(page, "mark", {"row": 1, "reason": "wrong label"})
    assert "4 negatives are left (1 wrong label, 1 exclude)" in call("review", run).output


def test_marks_go_where_output_says(tmp_path, visit):
    run, _ = run_of(tmp_path)
    visit.append(lambda page: send(page, "mark", {"row": 0, "reason": "exclude"}))
    assert call("review", run, "--output", tmp_path / "mine").exit_code == 0
    assert len((tmp_path / "mine" / "reviewed.jsonl").read_text().splitlines()) == 5
    assert not (run / "reviewed.jsonl").exists()


def test_two_reviews_at_once_are_refused(tmp_path, visit):
    run, _ = run_of(tmp_path)
    second = []
    visit.append(lambda _: second.append(call("review", run)))
    assert call("review", run).exit_code == 0
    assert second[0].exit_code == 2
    assert "at work" in second[0].stderr


def test_no_text_of_rows_is_said_or_logged(tmp_path, visit, logged):
    run, _ = run_of(tmp_path)
    visit.append(lambda page: send(page, "rows?search=rude"))
    visit.append(lambda page: send(page, "mark", {"row": 1, "reason": "exclude", "note": "walrus"}))
    result = call("review", run)
    said = result.output + result.stderr + logged.text
    assert "Rude" not in said
    assert "script" not in said
    assert "walrus" not in said


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_no_run_folder(tmp_path, where):
    result = call("review", tmp_path / where)
    assert result.exit_code == 2
    assert "run folder" in result.stderr or "summary.json" in result.stderr or "config.yaml" in result.stderr


def test_a_run_with_a_link_out_of_it_is_refused(tmp_path):
    run, source = run_of(tmp_path)
    (tmp_path / "mine.jsonl").write_text("mine")
    (run / "reviewed.jsonl").symlink_to(tmp_path / "mine.jsonl")
    for more in ([], ["--negatives", source]):
        result = call("review", run, *more)
        assert result.exit_code == 2
        assert "leads out" in result.stderr
    assert (tmp_path / "mine.jsonl").read_text() == "mine"


def test_a_run_without_scores(tmp_path):
    run, _ = run_of(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"command": "evaluate"}))
    result = call("review", run)
    assert result.exit_code == 2
    assert "score negatives" in result.stderr


@pytest.mark.usefixtures("visit")
def test_negatives_that_moved_are_named(tmp_path):
    run, source = run_of(tmp_path)
    moved = tmp_path / "moved.jsonl"
    (tmp_path / "bad.jsonl").rename(moved)
    result = call("review", run)
    assert result.exit_code == 2
    assert source in result.stderr
    assert "--negatives" in result.stderr
    assert call("review", run, "--negatives", moved).exit_code == 0
    other = jsonl(tmp_path / "other.jsonl", negative_rows(5))
    result = call("review", run, "--negatives", other)
    assert result.exit_code == 2
    assert "5 are there" in result.stderr


def test_standard_input_cannot_be_read_again(tmp_path):
    run, _ = run_of(tmp_path)
    (run / "config.yaml").write_text(yaml.safe_dump({"negatives": "-"}))
    result = call("review", run)
    assert result.exit_code == 2
    assert "standard input" in result.stderr


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    run, _ = run_of(tmp_path)
    monkeypatch.setattr(review, "find_spec", lambda name: None if name == "uvicorn" else True)
    result = call("review", run)
    assert result.exit_code == 2
    assert "u2a[serve]" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_well(tmp_path, number):
    run, _ = run_of(tmp_path)
    command = [sys.executable, "-m", "u2a.cli", "review", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{43}/", process.stdout.readline())
        page = SimpleNamespace(address=address.group())
        assert send(page, "mark", {"row": 1, "reason": "exclude"}).status == 200
        process.send_signal(number)
        said, faults = process.communicate(timeout=20)
    assert process.returncode == 0, faults
    assert "5 negatives are left" in said
    assert faults == ""
    assert HOSTILE not in (run / "reviewed.jsonl").read_text(encoding="utf-8")
    assert urlsplit(page.address).path.strip("/") not in said + faults  # the token, once


def test_align_takes_what_is_left(tmp_path, visit):
    """Impact, review of two rows, align on the rest."""
    pairs = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    given = {
        "--model": save_tiny(tmp_path / "model", "qwen"),
        "--preferences": jsonl(tmp_path / "pairs.jsonl", pairs),
        "--lora-rank": 2,
    }
    words = [word for item in given.items() for word in item]
    negatives = jsonl(tmp_path / "bad.jsonl", [{"prompt": p, "completion": r} for p, r in BAD])
    impact = call("impact", *words, "--negatives", negatives, "--output", tmp_path / "impact")
    assert impact.exit_code == 0, impact.output
    visit.append(lambda page: send(page, "mark", {"row": 0, "reason": "exclude"}))
    visit.append(lambda page: send(page, "mark", {"row": 4, "reason": "wrong label"}))
    assert call("review", tmp_path / "impact").exit_code == 0
    reviewed = tmp_path / "impact" / "reviewed.jsonl"
    aligned = call(
        "align", *words, "--negatives", reviewed, "--output", tmp_path / "align", "--outer-steps", 1
    )
    assert aligned.exit_code in (0, 1), aligned.output + aligned.stderr
    assert json.loads((tmp_path / "align" / "summary.json").read_text())["counts"]["negatives"] == 4
    assert (tmp_path / "bad.jsonl").read_text().count("\n") == len(BAD)
