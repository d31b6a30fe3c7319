"""Pairs are held out only if their prompts are not among those that the run was chosen by."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from u2a.cli import app
from u2a.commands.evaluation_rows import chosen_by
from u2a.commands.held_out import keep_held_out
from u2a.commands.session import Data
from u2a.data.load import load_negatives, load_preferences

PAIRS = [{"prompt": f"Question {i}?", "chosen": f"Answer {i}.", "rejected": "Go away."} for i in range(4)]
BAD = [{"prompt": f"Bad {i}?", "completion": "Go away, I will not."} for i in range(4)]


def data_of(test):
    return Data(load_negatives(BAD), load_preferences(PAIRS), load_preferences(test), None)


def asked(*prompts):
    return [{**PAIRS[0], "prompt": prompt} for prompt in prompts]


@pytest.mark.parametrize(
    "prompts, left, words",
    [
        (["Other?"], 1, ""),
        (["Other?", "question  2?"], 1, "1 of 2 held-out pairs share prompts with the validation rows: left"),
        (["Bad 1?", "Other?", "Other 2?"], 2, "1 of 3 held-out pairs share prompts with the negatives: left"),
        (["Bad 1?", "Question 1?"], 0, "2 of 2 held-out pairs share prompts with the validation rows or "
         "negatives: left out, and there are no held-out figures"),
    ],
)  # fmt: skip
def test_pairs_that_were_met_are_left_out_and_it_is_said_once(prompts, left, words):
    data = data_of(asked(*prompts))
    keep_held_out(data)
    assert len(data.test or ()) == left
    assert (data.test is None) is (left == 0)
    assert len(data.warnings) == bool(words)
    assert words in "".join(data.warnings)


def test_no_held_out_claim_on_the_validation_pairs(tmp_path):
    """`--test` of the same file ended in `Better: … the held-out margin …`, and the card published it."""
    file = jsonl(tmp_path / "pairs.jsonl", PAIRS)
    run = tmp_path / "run"
    options = {
        "--model": str(save_tiny(tmp_path / "model", "qwen")),
        "--negatives": jsonl(tmp_path / "bad.jsonl", BAD),
        "--preferences": file,
        "--test": file,
        "--output": str(run),
        "--outer-steps": "1",
        "--measurements": "1",
        "--max-repetition-rise": "1",
    }
    result = CliRunner().invoke(app, ["align", *(word for pair in options.items() for word in pair)])
    assert result.exit_code in (0, 1), result.output + result.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert "held-out" not in summary["end"] + str(summary["table"])
    assert summary["counts"]["test"] == 0
    assert sum("4 of 4 held-out pairs share prompts" in each for each in summary["warnings"]) == 1
    for card in (run / "README.md", run / "adapter" / "README.md"):
        text = card.read_text()
        assert "held-out margin" not in text
        assert "held_out" not in text
        assert "No held-out pairs of other prompts were given" in text
    assert chosen_by([str(run)], load_preferences(PAIRS[:1] + asked("Other?")))[0].startswith(
        f"1 of 2 pairs of --test share prompts with the --preferences that {run} was chosen by"
    )


def test_evaluate_warns_of_pairs_that_a_run_was_chosen_by(tmp_path, monkeypatch):
    (tmp_path / "project" / "run").mkdir(parents=True)
    jsonl(tmp_path / "project" / "pairs.jsonl", PAIRS)
    config = {"preferences": "pairs.jsonl", "objective": "preference"}
    (tmp_path / "project" / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    assert len(chosen_by(["project/run", "elsewhere"], load_preferences(PAIRS))) == 1
    assert chosen_by(["project/run"], load_preferences(asked("Other?"))) == []
    assert chosen_by(["project/run"], None) == []
    (tmp_path / "project" / "pairs.jsonl").write_text("not rows")
    assert chosen_by(["project/run"], load_preferences(PAIRS)) == []
