"""`--objective reward` from end to end on tiny saved models: prompts alone, every command, refusals."""

import json
import sys

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from u2a.cli import app

BAD = [{"prompt": f"Bad {i}?", "completion": f"No {i}, go away. " * (i + 1)} for i in range(6)]
ASKED = [{"prompt": f"Question {i}?"} for i in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A module that scores, beside a model and prompts; it notes what it was asked."""
    made = tmp_path_factory.mktemp("reward")
    (made / "short_is_good.py").write_text(
        "asked = []\n"
        "def score(prompts, answers):\n"
        "    asked.append(sorted({p[-1]['content'] for p in prompts}))\n"
        "    return [-0.1 * len(answer) for answer in answers]\n"
    )
    return made


@pytest.fixture
def given(folder, tmp_path, monkeypatch):
    """Options of a small, valid run without a single good text."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if not (folder / "model").exists():
        save_tiny(folder / "model", "qwen")
    return {
        "--model": str(folder / "model"),
        "--negatives": jsonl(tmp_path / "bad.jsonl", BAD),
        "--preferences": jsonl(tmp_path / "ask.jsonl", ASKED),
        "--objective": "reward",
        "--objective-reward-function": "short_is_good:score",
        "--objective-samples": "2",
        "--objective-max-new-tokens": "5",
        "--lora-rank": "2",
        "--output": str(tmp_path / "run"),
    }


def call(command, options, *more):
    words = [word for pair in options.items() for word in pair]
    return CliRunner().invoke(app, [command, *words, *more])


def test_impact_needs_only_prompts_and_a_scorer(given, tmp_path):
    result = call("impact", given)
    assert result.exit_code == 0, result.output + result.stderr
    assert "U is measured on what the original model answers" in result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["counts"]["validation"] == 4
    assert summary["table"][0]["unit"] == "the scorer's"
    assert "likeness" not in json.dumps(summary["difference"])
    table = pq.read_table(tmp_path / "run" / "impact.parquet").to_pydict()
    assert len(set(table["impact"])) == 6
    assert all(error > 0 for error in table["impact_se"])
    asked = sys.modules["short_is_good"].asked
    assert asked[-1] == [row["prompt"] for row in ASKED]


def test_align_writes_j_with_its_standard_error(given, tmp_path):
    pairs = [{**row, "chosen": "Yes, with care.", "rejected": "Go away."} for row in ASKED]
    more = {
        "--preferences": jsonl(tmp_path / "pairs.jsonl", pairs),  # their prompts are taken
        "--test": jsonl(tmp_path / "test.jsonl", [{**pair, "prompt": "Held out?"} for pair in pairs]),
        "--retain": jsonl(tmp_path / "good.jsonl", [{"prompt": "Tea?", "completion": "Yes, with milk."}] * 2),
        "--learning-rate": "1e-2",
        "--kl-budget": "0",
        "--max-nll-rise": "100",
        "--outer-steps": "1",
        "--measurements": "1",
        "--select": "4",
    }
    result = call("align", {**given, **more})
    assert result.exit_code in (0, 1), result.output + result.stderr
    points = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(points) == 2
    assert all(point["objective_se"] > 0 for point in points)
    assert points[0]["objective"] != points[1]["objective"]
    assert "held-out margin" in result.output


def test_verify_measures_held_out_prompts_by_the_same_scorer(given, tmp_path):
    held_out = jsonl(tmp_path / "test.jsonl", [{"prompt": f"Held out {i}?"} for i in range(3)])
    more = {"--test": held_out, "--subsets": "4", "--repeats": "0", "--learning-rate": "1e-2"}
    result = call("verify", {**given, **more})
    assert result.exit_code in (0, 1), result.output + result.stderr
    figures = json.loads((tmp_path / "run" / "verify.json").read_text())
    assert "held_out" in figures["estimators"]["diagonal"]
    assert "bm25" not in figures["controls"]
    assert "the control bm25 is left out: the validation rows are prompts alone" in result.stderr
    assert ["Held out 0?", "Held out 1?", "Held out 2?"] in sys.modules["short_is_good"].asked
    changes = pq.read_table(tmp_path / "run" / "subsets.parquet")["held_out_change"].to_pylist()
    assert any(changes)
    other = call("verify", {**given, **more, "--objective-samples": "3"}, "--resume")
    assert other.exit_code == 2


BAD_INPUT = {
    "no scorer": ({"--objective-reward-function": ""}, ["--objective-reward-model", "name one"]),
    "two scorers": ({"--objective-reward-model": "some/model"}, ["only one of them"]),
    "no module": ({"--objective-reward-function": "no_such:f"}, ["no_such", "--objective-reward-function"]),
    "no reward model": (
        {"--objective-reward-function": "", "--objective-reward-model": "./no-such-model"},
        ["--objective-reward-model ./no-such-model"],
    ),
    "one sample": ({"--objective-samples": "1"}, ["--objective-samples", "at least 2"]),
    "no room": ({"--objective-max-new-tokens": "511"}, ["--max-length 512"]),
    "negative beta": ({"--objective-beta": "-0.1"}, ["--objective-beta", "negative"]),
    "another objective's": ({"--objective": "preference"}, ["means nothing for --objective preference"]),
    "no prompt": ({"--preferences": "none.jsonl"}, ["none.jsonl"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_options_exit_2_before_a_model_is_loaded(given, tmp_path, case, monkeypatch):
    import u2a.models.policy

    monkeypatch.setattr(u2a.models.policy, "load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    changed, words = BAD_INPUT[case]
    result = call("align", {k: v for k, v in {**given, **changed}.items() if v})
    assert result.exit_code == 2, result.output + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_yaml_alone_cannot_name_code(given, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("objective_reward_function: short_is_good:score\n")
    options = {k: v for k, v in given.items() if k != "--objective-reward-function"}
    result = call("impact", {**options, "--config": str(file)})
    assert result.exit_code == 2
    assert "objective_reward_function" in result.stderr
    assert "counts only together with the flag --objective-reward-function" in result.stderr
    assert not (tmp_path / "run").exists()


def test_help_says_what_belongs_to_the_reward():
    help_ = " ".join(CliRunner().invoke(app, ["align", "--help"]).output.split())
    for flag in ("--objective-reward-model", "--objective-reward-function", "--objective-samples"):
        assert flag in help_
