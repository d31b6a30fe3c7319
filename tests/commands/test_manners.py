"""`--quiet` and `--json`, the same for every command; no colour where there is no terminal."""

import json
import os
import pty
import re
import subprocess
import sys
import warnings

import pytest
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from problems import BAD, GOOD, PAIRS
from u2a import cli
from u2a.commands import check
from u2a.commands.terminal import give, manners, print_json, print_table, say, shown_log
from u2a.types import GuardStop, UserError

NAMES = [command.name for command in cli.app.registered_commands]


def call(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Options by command, of small runs on a tiny model."""
    folder = tmp_path_factory.mktemp("manners")
    pairs = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    rows = {
        "--negatives": jsonl(folder / "bad.jsonl", [{"prompt": p, "completion": r} for p, r in BAD]),
        "--preferences": jsonl(folder / "pairs.jsonl", pairs),
        "--retain": jsonl(folder / "good.jsonl", [{"prompt": p, "completion": r} for p, r in GOOD]),
    }
    held_out = jsonl(
        folder / "test.jsonl", [{**pair, "prompt": f"{pair['prompt']} Really?"} for pair in pairs]
    )
    every = jsonl(folder / "all.jsonl", [{**pairs[0], "prompt": f"{k}?"} for k in range(6)])
    methods = folder / "compare.yaml"
    methods.write_text("methods: [u2a]\n")
    data = [word for item in rows.items() for word in item]
    model = ["--model", str(save_tiny(folder / "model", "qwen")), "--lora-rank", "2"]
    compared = ["--test", held_out, "--config", str(methods), "--steps", "1", "--seeds", "1", "--looks", "1"]
    return {
        "check": data,
        "split": [every, "--validation", "1", "--test", "1"],
        "impact": [*data, *model],
        "align": [*data, *model, "--outer-steps", "1"],
        "verify": [*data, *model, "--subsets", "4", "--repeats", "0", "--embedding-model="],
        "compare": [*data, *model, *compared, "--rates", "1e-3"],
        "evaluate": ["--test", held_out, "--max-new-tokens", "4", "--metrics", "preference,fluency"],
        "plan": ["--model-params", "8e9", "--negatives", "1e6", "--price", "2"],
    }


@pytest.fixture(scope="module")
def align(given, tmp_path_factory):
    """A run of `align --json`: its folder and what was printed."""
    folder = tmp_path_factory.mktemp("align") / "run"
    result = call("align", *given["align"], "--output", folder, "--json")
    assert result.exit_code in (0, 1), result.output
    return folder, result


def test_every_command_has_both_flags():
    for name in NAMES:
        shown = call(name, "--help").output
        assert "--quiet" in shown
        assert "--json" in shown


def test_no_file_sets_them(tmp_path):
    (tmp_path / "run.yaml").write_text("json: true\n")
    result = call("check", "--config", tmp_path / "run.yaml")
    assert result.exit_code == 2
    assert "unknown key" in result.stderr


# -- --json -------------------------------------------------------------------------------------------------


def test_json_of_align(align):
    folder, result = align
    found = json.loads(result.stdout)
    summary = json.loads((folder / "summary.json").read_text())
    assert {key: found[key] for key in summary} == summary
    assert found["status"] == result.exit_code
    assert found["error"] is None
    assert found["output"] == str(folder)
    assert set(found["files"]) >= {"adapter", "impact.parquet", "weights.parquet", "report.html"}
    assert "Original beside aligned" in result.stderr  # words for people go there
    assert "Run folder" in result.stderr


@pytest.mark.parametrize(
    "command, file", [("impact", ""), ("verify", "verify.json"), ("compare", "comparison.json")]
)
def test_json_of_runs(given, tmp_path, command, file):
    result = call(command, *given[command], "--output", tmp_path / "run", "--json")
    assert result.exit_code in (0, 1), result.output
    found = json.loads(result.stdout)
    assert found["command"] == command
    assert found["outcome"] == json.loads((tmp_path / "run" / "summary.json").read_text())["outcome"]
    if file:
        assert found["results"] == json.loads((tmp_path / "run" / file).read_text())


def test_json_of_evaluate_and_report(given, align, tmp_path):
    folder = align[0]
    result = call("evaluate", folder, *given["evaluate"], "--output", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["results"] == json.loads((tmp_path / "run" / "evaluation.json").read_text())
    found = json.loads(call("report", folder, "--json").stdout)
    assert found == {"command": "report", "status": 0, "error": None, "report": str(folder / "report.html")}


def test_json_of_check_split_and_plan(given, tmp_path):
    bad = jsonl(
        tmp_path / "bad.jsonl", [{"prompt": "a", "completion": ""}, {"prompt": "a", "completion": "b"}]
    )
    result = call("check", "--negatives", bad, "--json")
    found = json.loads(result.stdout)
    assert found["status"] == result.exit_code == 1
    assert found["unusable"] == 1
    assert found["findings"][0]["file"] == bad
    assert found["findings"][0]["row"] == 1
    assert found["rows"] == {"negatives": 2}
    found = json.loads(call("split", *given["split"], "--output", tmp_path / "parts", "--json").stdout)
    assert found["parts"]["test"] == {"file": str(tmp_path / "parts" / "test.jsonl"), "rows": 1}
    assert "test.jsonl" in found["files"]
    found = json.loads(call("plan", *given["plan"], "--json").stdout)
    assert found["total"]["cost"] == pytest.approx(2 * found["total"]["hours"])


@pytest.mark.parametrize(
    "words, kind, said",
    [
        (["check"], "input", "nothing to check"),
        (["split", "nowhere.jsonl", "--output", "x"], "input", "nowhere.jsonl"),
        (["impact", "--model", "m"], "input", "--negatives"),
        (["align", "--config", "nowhere.yaml"], "input", "nowhere.yaml"),
        (["evaluate", "a"], "input", "--output"),
        (["report", "nowhere"], "input", "nowhere"),
        (["review", "nowhere"], "input", "nowhere"),
        (["plan"], "input", "--model-params"),
        (["plan", "--nix"], "usage", "--nix"),
        (["plan", "--tokens", "many"], "usage", "--tokens"),
        (["split"], "usage", "file"),
        (["nix"], "usage", "nix"),
    ],
)
def test_an_error_is_an_object_too(words, kind, said):
    """On standard output, as everything for programs; for people it is where it always is."""
    result = call(*words, "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert (found["command"], found["status"], found["error"]["kind"]) == (words[0], 2, kind)
    assert said in found["error"]["message"]
    assert said in result.stderr
    assert call(*words).stdout == ""


def _raise(error):
    def run(_values):
        give(half="done")
        raise error

    return run


@pytest.mark.parametrize(
    "error, kind, status",
    [
        (UserError("mend it"), "input", 2),
        (GuardStop("mend it"), "guard", 3),
        (KeyboardInterrupt(), "interrupted", 3),
        (OSError(28, "No space left on device"), "machine", 2),
        (RuntimeError("mend it"), "fault", 70),
    ],
)
def test_kinds_of_errors(monkeypatch, error, kind, status):
    monkeypatch.setattr(check, "run", _raise(error))
    result = call("check", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["status"], found["error"]["kind"]) == (status, status, kind)
    assert found["half"] == "done"
    assert f"u2a: {found['error']['message']}" in result.stderr


def test_what_libraries_print_does_not_get_between(monkeypatch):
    def run(_values):
        print("progress of a library")
        warnings.warn("of a library", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(check, "run", run)
    with pytest.warns(UserWarning, match="of a library"):
        result = call("check", "--json")
    assert json.loads(result.stdout)["status"] == 0
    assert "progress of a library" in result.stderr


def test_no_text_in_json_acts_on_the_terminal(capsys):
    from test_printable import ATTACKS

    print_json(ATTACKS | {"delete": "\x7f"})
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert json.loads(shown) == ATTACKS | {"delete": "\x7f"}


# -- --quiet ------------------------------------------------------------------------------------------------


def test_quiet_says_what_sums_up(given, tmp_path):
    result = call("check", *given["check"], "--quiet")
    assert re.fullmatch(r"\d+ findings, 0 of them make rows unusable.\n", result.stdout)
    result = call("split", *given["split"], "--output", tmp_path / "parts", "--quiet")
    assert result.stdout == f"5 parts are in {tmp_path / 'parts'}.\n"
    result = call("plan", *given["plan"], "--quiet")
    assert result.stdout.startswith("In all ")
    assert "phase" not in result.stdout
    result = call("impact", *given["impact"], "--output", tmp_path / "run", "--quiet")
    assert re.fullmatch(r"\d of 6 negatives are worth unlearning .*\n", result.stdout)
    assert result.stderr == ""  # no warnings, no progress
    assert "only 4 validation rows" in (tmp_path / "run" / "run.log").read_text()


def test_quiet_still_says_errors():
    result = call("check", "--quiet")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nothing to check" in result.stderr


def test_both_together(given):
    result = call("check", *given["check"], "--quiet", "--json")
    assert json.loads(result.stdout)["unusable"] == 0
    assert len(result.stderr.splitlines()) == 1


def test_quiet_silences_words_tables_warnings_and_the_log(capsys):
    import logging

    with manners(quiet=True), shown_log():
        say("hush")
        print_table("hush", ["hush"], [["hush"]])
        warnings.warn("hush", UserWarning, stacklevel=1)
        logging.getLogger("u2a").warning("hush")
        logging.getLogger("u2a").error("alarm")
        say("the sum", essential=True)
    found = capsys.readouterr()
    assert (found.out, found.err) == ("the sum\n", "Warning: alarm\n")
    say("loud again")
    assert capsys.readouterr().out == "loud again\n"


# -- colour -------------------------------------------------------------------------------------------------

SHOW = """
import time
from u2a.commands.terminal import Bars, manners, print_table, say
with manners(quiet={quiet}), Bars() as bars, bars.task("work", 10) as advance:
    print_table("t", ["a", "b"], [["1", "2"]])
    for _ in range(5):
        advance(1)
        time.sleep(0.15)
say("done", essential=True)
"""
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d)(?:;\d+)*m")


def on_a_terminal(code, **environment):
    """What a program writes to a terminal, both streams together."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    env = {**kept, "TERM": "xterm-256color", "COLUMNS": "100", **environment}
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    return shown.decode()


def test_a_terminal_gets_colour_and_the_time_left():
    shown = on_a_terminal(SHOW.format(quiet=False))
    assert COLOUR.search(shown)
    assert "left:" in shown
    assert "done" in shown


def test_no_color_is_heard():
    shown = on_a_terminal(SHOW.format(quiet=False), NO_COLOR="1")
    assert not COLOUR.search(shown)
    assert "left:" in shown


def test_quiet_shows_no_progress_on_a_terminal():
    shown = on_a_terminal(SHOW.format(quiet=True))
    assert shown.split() == ["done"]


def test_no_terminal_gets_neither():
    done = subprocess.run([sys.executable, "-c", SHOW.format(quiet=False)], capture_output=True, text=True)
    assert "\x1b" not in done.stdout + done.stderr
    assert "left:" not in done.stderr
    assert "done" in done.stdout
