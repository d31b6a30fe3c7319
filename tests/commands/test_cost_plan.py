"""`u2a plan`: a table or JSON, nothing loaded, nothing written."""

import json

import pytest
from typer.testing import CliRunner

from u2a.cli import app

BASE = {"--model-params": "8e9", "--negatives": "1e6", "--devices": "8"}


def call(*more):
    usual = [word for pair in BASE.items() if pair[0] not in more for word in pair]
    return CliRunner().invoke(app, ["plan", *usual, *more])


def figures(*more):
    found = call("--json", *more)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_the_table_names_every_phase():
    found = call("--price", "2")
    assert found.exit_code == 0
    for phase in ("log-probs of the negatives", "scores", "unlearning", "measuring J, U and KL", "in all"):
        assert phase in found.stdout
    assert "fit one device of 80 GB" in found.stdout


def test_json_adds_up():
    found = figures("--price", "2")
    phases = found["phases"].values()
    for key in ("flops", "hours", "cost"):
        assert found["total"][key] == pytest.approx(sum(one[key] for one in phases))
    assert found["total"]["cost"] == pytest.approx(found["total"]["hours"] * 8 * 2)
    assert figures()["total"]["cost"] is None  # unknown is not free


@pytest.mark.parametrize(
    "more, phase, factor",
    [
        (("--flops", "8e14"), "scores", 0.5),
        (("--utilisation", "0.7"), "scores", 0.5),
        (("--outer-steps", "4"), "scores", 2),
        (("--scoring", "exact"), "scores", 1.1),
        (("--select", "100%"), "unlearning", 2),
        (("--select", "1000"), "unlearning", 1000 / 5e5),
        (("--epochs", "2"), "unlearning", 2),
        (("--retain-term",), "unlearning", 2),
        (("--lora-rank", "0"), "unlearning", 1.5),
        (("--gradient-checkpointing",), "unlearning", 1.5),
        (("--measurements", "8"), "measuring J, U and KL", 17 / 9),
    ],
)
def test_every_option_counts(more, phase, factor):
    before, after = figures()["phases"][phase]["hours"], figures(*more)["phases"][phase]["hours"]
    assert after == pytest.approx(factor * before)


@pytest.mark.parametrize(
    "more, key, least",
    [
        (("--quantize", "4bit"), ("memory", "weights"), 0.25),
        (("--bytes-per-param", "4"), ("memory", "weights"), 2),
        (("--batch-tokens", "8192"), ("memory", "activations of one batch"), 2),
        (("--vocabulary", "256e3"), ("memory", "logits of one batch"), 2),
        (("--tokens", "600"), ("disk", "negatives"), 2),
    ],
)
def test_bytes_follow_the_options(more, key, least):
    room, name = key
    assert figures(*more)[room][name] == pytest.approx(least * figures()[room][name])


@pytest.mark.parametrize("size", ["8B", "8b", "8000M", "8e9", "8G", "0.008T", "8000000000", "8_000_000K"])
def test_sizes_as_people_write_them(size):
    assert figures("--model-params", size) == figures()
    assert figures("--negatives", "1M") == figures()
    assert figures("--proxy-params", "135M")["phases"]["scores"] != figures()["phases"]["scores"]


def test_a_file_may_hold_sizes_as_numbers_too(tmp_path):
    (tmp_path / "plan.yaml").write_text(
        "model_params: 8e9\nnegatives: 1000000\nproxy_params: 0.0\ndevices: 8\n"
    )
    done = CliRunner().invoke(app, ["plan", "--config", str(tmp_path / "plan.yaml"), "--json"])
    assert json.loads(done.stdout)["total"] == figures()["total"]


def test_defaults_are_shown_short():
    shown = " ".join(CliRunner().invoke(app, ["plan", "--help"]).stdout.split())
    assert "[default: 4e+14]" in shown
    assert "[default: 0.35]" in shown
    assert "400000000000000.0" not in shown


def test_remarks_on_what_does_not_fit():
    assert "One batch does not fit" in figures("--device-memory", "1e9")["remarks"][0]
    assert figures("--device-memory", "40e9")["remarks"][0].endswith(
        "needs 2 devices of 40 GB: shard it (FSDP)."
    )
    one = figures("--device-memory", "40e9", "--devices", "1")["remarks"][0]
    assert one == "One copy of the model with its optimiser needs 2 devices of 40 GB."
    assert "--proxy-params" in figures()["remarks"][1]


@pytest.mark.parametrize(
    "more, message",
    [
        (("--model-params", "0"), "--model-params is missing"),
        (("--model-params", "8x"), "--model-params 8x: a number such as 8e9, 8B or 135M"),
        (("--model-params", "B"), "--model-params B: a number"),
        (("--model-params", "-1"), "--model-params -1: a number"),
        (("--negatives", "0"), "--negatives is missing"),
        (("--negatives", "inf"), "--negatives inf: how many rows"),
        (("--negatives", "bad.jsonl"), "--negatives bad.jsonl: how many rows: `u2a plan` takes numbers"),
        (("--proxy-params", "small"), "--proxy-params small: a number such as 135M"),
        (("--select", "many"), "--select many"),
        (("--select", "120%"), "--select 120%"),
        (("--select", "0.5"), "--select 0.5"),
        (("--select", "1.5"), "--select 1.5"),
        (("--utilisation", "2"), "utilisation"),
    ],
)
def test_bad_options(more, message):
    found = call(*more)
    assert found.exit_code == 2
    assert message in found.stderr
