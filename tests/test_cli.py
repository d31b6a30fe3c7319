"""The command line: speed of --help, exit statuses, one clear message for every kind of bad input."""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from u2a.cli import app
from u2a.commands import catalogue, schemas

PAIR = {"prompt": "Hi there", "chosen": "Hello, how can I help?", "rejected": "Go away."}
PAIRS = [{**PAIR, "prompt": f"Question {i}?", "chosen": f"Answer {i}, with care."} for i in range(6)]
BAD = [{"prompt": f"Bad {i}?", "completion": "No. " * (i + 1)} for i in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model"), "qwen"))


@pytest.fixture
def given(tmp_path, model):
    """Options of a small, valid run."""
    return {
        "--model": model,
        "--negatives": jsonl(tmp_path / "bad.jsonl", BAD),
        "--preferences": jsonl(tmp_path / "pairs.jsonl", PAIRS),
        "--output": str(tmp_path / "run"),
    }


def call(command, options):
    return CliRunner().invoke(app, [command, *(word for pair in options.items() for word in pair)])


def test_help_answers_in_half_a_second():
    """Of processor time, which is all that it waits for: the clock would also count what else runs here. On a
    slow machine, in no more than five times what the two libraries that it needs take there."""

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    found = min(seconds("-m", "u2a.cli", "--help") for _ in range(3))
    assert found < 0.5 or found < 5 * min(seconds("-c", "import numpy, typer") for _ in range(3))


def test_version():
    from importlib.metadata import version

    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"u2a {version('u2a')}\n")


def test_help_loads_nothing_heavy():
    heavy = "('torch', 'transformers', 'datasets', 'pyarrow')"
    code = f"import u2a.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"


COMMANDS = [
    "check",
    "split",
    "impact",
    "align",
    "verify",
    "evaluate",
    "compare",
    "plan",
    "report",
    "review",
    "chat",
    "demo",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "--help" in result.output


BAD_INPUT = {
    "missing file": ({"--negatives": "nowhere.jsonl"}, ["nowhere.jsonl"]),
    "missing pairs": ({"--preferences": ""}, ["--preferences"]),
    "unknown loss": ({"--loss": "dpo"}, ["dpo", "npo"]),
    "option of another loss": ({"--loss": "ga", "--beta": "0.2"}, ["--beta"]),
    "contradiction": ({"--loss": "graddiff", "--retain-loss": "kl"}, ["graddiff"]),
    "selection": ({"--select": "0%"}, ["--select"]),
    "device that is not there": ({"--device": "xpu"}, ["--device", "xpu"]),
    "seed past numpy's limit": ({"--seed": str(2**32)}, ["--seed", "at most"]),
    "no number": ({"--min-gain": "nan"}, ["--min-gain", "finite"]),
    "retain term without rows": ({"--loss": "graddiff"}, ["graddiff", "--retain"]),
    "no adapter for Kronecker factors": (
        {"--curvature": "kfac", "--lora-rank": "0"},
        ["kfac", "--lora-rank"],
    ),
    "missing model": ({"--model": "./no-such-folder"}, ["no-such-folder"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_options_exit_2_and_write_nothing(given, tmp_path, case, monkeypatch):
    changed, words = BAD_INPUT[case]
    _refused(given | changed, words, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "words, told",
    [
        (
            ["--negatives", "a.jsonl", "--negatives", "b.jsonl"],
            "'--negatives': it is given 2 times; it names",
        ),
        (["--negatives=a.jsonl", "--retain", "c", "--negatives", "a.jsonl"], "put the files into one folder"),
        (["--max-length", "9", "--max-length", "9"], "'--max-length': it is given 2 times; give it once"),
        (["--config", "a.yaml", "--config", "b.yaml"], "'--config': it is given 2 times; give it once"),
    ],
)
def test_a_flag_given_twice_is_refused(words, told):
    """The last one counted, and the rows of the first were left out without a word."""
    found = CliRunner().invoke(app, ["check", *words, "--json"])
    assert found.exit_code == 2
    error = json.loads(found.stdout)["error"]
    assert error["kind"] == "usage"
    assert told in error["message"]


def test_a_switch_given_twice_says_the_same_again(tmp_path):
    file = jsonl(tmp_path / "bad.jsonl", [{"prompt": "Q", "completion": "A"}])
    assert call("check", {"--negatives": file, "--quiet": "--quiet"}).exit_code == 0


@pytest.mark.parametrize(
    "command, line, told",
    [
        (
            "verify",
            "select: 30%",
            "`select` is an option of u2a align and plan, not of u2a verify; leave it",
        ),
        ("impact", "seed: 1\nmethods: [u2a]", "`methods` is an option of u2a compare, not of u2a impact;"),
        ("impact", "kl_budget: 1\nmin_gain: 0", "`kl_budget`, `min_gain` are options of u2a align, not of"),
        ("impact", "tset: a.jsonl", "unknown key 'tset'"),
    ],
)
def test_a_key_of_another_command_is_called_that(tmp_path, command, line, told):
    """For `test` in a file for `impact`, `self_check` was suggested."""
    (tmp_path / "run.yaml").write_text(line)
    found = call(command, {"--config": str(tmp_path / "run.yaml")})
    assert found.exit_code == 2
    assert f"run.yaml: {told}" in " ".join(found.stderr.split())


BAD_FILES = {
    "broken json": ('{"prompt": "a", "completion": "b"}\n{"prompt": \n', ["bad.jsonl", "2"]),
    "missing column": ('{"question": "a"}\n', ["bad.jsonl", "question"]),
    "empty": ("", ["bad.jsonl"]),
    "wrong type": ('{"prompt": 3, "completion": "b"}\n', ["bad.jsonl", "1", "prompt"]),
    "negative weight": ('{"prompt": "a", "completion": "b", "weight": -1}\n', ["bad.jsonl", "1", "weight"]),
    "no response": ('{"prompt": "a", "completion": ""}\n', ["bad.jsonl", "1"]),
}


def test_impact_refuses_a_retain_term_without_rows_before_loading(given, tmp_path, monkeypatch):
    import u2a.models.policy

    monkeypatch.setattr(u2a.models.policy, "load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    result = call("impact", {**given, "--loss": "graddiff"})
    assert result.exit_code == 2
    assert "--retain" in result.output
    one = jsonl(tmp_path / "one.jsonl", [{"prompt": "a", "completion": "b"}])
    result = call("align", {**given, "--loss": "graddiff", "--retain": one})
    assert result.exit_code == 2
    assert "at least 2 rows" in result.output


def test_a_broken_config_is_refused_on_resume(given, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    (tmp_path / "run" / "versions.json").write_text("{}")
    words = [word for pair in given.items() for word in pair]
    result = CliRunner().invoke(app, ["align", *words, "--resume"])
    assert result.exit_code == 2
    assert "config.yaml" in result.output


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_exit_2_and_write_nothing(given, tmp_path, case, monkeypatch):
    content, words = BAD_FILES[case]
    (tmp_path / "bad.jsonl").write_text(content)
    _refused(given, words, tmp_path, monkeypatch)


def _refused(options, words, tmp_path, monkeypatch):
    import u2a.models.policy

    def never(*_, **__):
        raise AssertionError("a model was loaded before the data had been checked")

    monkeypatch.setattr(u2a.models.policy, "load_policy", never)
    result = call("align", options)
    assert result.exit_code == 2, result.output
    message = result.stderr.strip()
    assert message.startswith("u2a: ")
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_is_not_empty_is_refused(given, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    result = call("align", given)
    assert result.exit_code == 2
    assert "not empty" in result.stderr
    assert (tmp_path / "run" / "mine.txt").read_text() == "precious"


def test_a_folder_without_a_tokenizer_is_refused(given, tmp_path):
    bare = save_tiny(tmp_path / "bare", "qwen")
    for file in bare.glob("*token*"):
        file.unlink()
    result = call("align", {**given, "--model": str(bare)})
    assert result.exit_code == 2
    assert "tokenizer" in result.stderr


@pytest.mark.parametrize(
    "content, words",
    [
        ("kl_bugdet: 0.1\n", ["kl_bugdet", "kl_budget"]),
        ("epochs: many\n", ["epochs", "number"]),
        ("resume: 1\n", ["resume", "true or false"]),
        ("- a list\n", ["keys and values"]),
        ("loss: [\n", ["YAML"]),
    ],
)
def test_bad_yaml_exits_2(given, tmp_path, content, words):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    result = call("align", {**given, "--config": str(file)})
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr


def test_align_end_to_end(given, tmp_path):
    options = {
        **given,
        "--test": jsonl(tmp_path / "test.jsonl", [{**p, "prompt": f"{p['prompt']} Really?"} for p in PAIRS]),
        "--retain": jsonl(tmp_path / "good.jsonl", [{"prompt": "Tea?", "completion": "Yes, with milk."}] * 3),
        "--lora-rank": "2",
        "--learning-rate": "1e-2",
        "--kl-budget": "10",
        "--max-nll-rise": "10",
        "--outer-steps": "1",
        "--select": "4",
    }
    result = call("align", options)
    assert result.exit_code in (0, 1), result.output
    run = tmp_path / "run"
    files = {p.name for p in run.iterdir()}
    assert files >= {
        "adapter", "weights.parquet", "impact.parquet", "metrics.jsonl", "report.html", "README.md",
        "config.yaml", "versions.json", "summary.json", "run.log",
    }  # fmt: skip
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    import pyarrow.parquet as pq

    impact = pq.read_table(run / "impact.parquet")
    assert impact.column_names == [
        "row", "id", "prompt", "response", "impact", "utility_cost", "loss", "n_tokens", "impact_se",
        "cosine", "grad_norm",
    ]  # fmt: skip
    weights = pq.read_table(run / "weights.parquet").to_pydict()
    assert list(weights) == ["row", "id", "weight", "selected", "weight_1"]
    assert sum(weights["selected"]) <= 4
    table = {row["metric"]: row for row in json.loads((run / "summary.json").read_text())["table"]}
    for metric in ("J on validation", "retain NLL", "held-out margin, summed"):
        low, high = table[metric]["change_interval"]
        change = table[metric]["aligned"] - table[metric]["original"]
        assert low <= high
        assert (low + high) / 2 == pytest.approx(change, abs=1e-6)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["loss"] == "npo"
    assert config["learning_rate"] == 1e-2
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["event"] == "measurement"
    assert "held-out margin" in result.output
    assert "Each outer step" in result.output


SMALL = {
    "--lora-rank": "2",
    "--learning-rate": "1e-2",
    "--kl-budget": "0",
    "--max-nll-rise": "100",
    "--outer-steps": "1",
    "--select": "4",
}


@pytest.mark.parametrize(
    "more",
    [
        {"--loss": "graddiff"},
        {"--loss": "ga+kl"},
        {"--loss": "simnpo", "--gamma": "0.5"},
        {"--loss": "npo", "--retain-loss": "l2", "--length-normalise": ""},
        {"--lora-rank": "0", "--kl-budget": "5"},
        {"--objective": "nll"},
        {"--scoring": "jvp", "--select": "100%"},
        {"--scoring": "exact", "--restart": "", "--outer-steps": "2", "--rho": "0.1"},
        {"--utility-budget": "0.5", "--outer-steps": "2"},
        {"--gradient-accumulation": "2", "--batch-size": "2", "--gradient-checkpointing": ""},
        {"--merge": ""},
        {"--template": "none"},
        {"--joint": "0.5", "--joint-share": "0.4"},
    ],
    ids=lambda more: " ".join(f"{k} {v}".strip() for k, v in more.items()),
)
def test_align_with_every_kind_of_option(given, tmp_path, more):
    good = jsonl(tmp_path / "good.jsonl", [{"prompt": f"Tea {i}?", "completion": "Yes."} for i in range(4)])
    options = {**given, **SMALL, "--retain": good, **more}
    if more.get("--objective") == "nll":
        options["--preferences"] = good
    words = [word for pair in options.items() for word in pair if word]
    result = CliRunner().invoke(app, ["align", *words])
    assert result.exit_code in (0, 1), result.output + result.stderr
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text())["counts"]["negatives"] == 6
    if "--merge" in more:
        assert (run / "merged" / "model.safetensors").is_file()
        config, before = (
            json.loads((folder / "config.json").read_text())
            for folder in (run / "merged", Path(given["--model"]))
        )
        assert config == before  # other tools load it as the original model
    if more.get("--lora-rank") == "0":
        assert (run / "model" / "model.safetensors").is_file()


def test_one_negative_and_prior_weights(given, tmp_path):
    one = jsonl(tmp_path / "one.jsonl", [{**BAD[2], "weight": 0.5}])
    assert call("align", {**given, **SMALL, "--negatives": one}).exit_code in (0, 1)
    none = jsonl(tmp_path / "none.jsonl", [{**row, "weight": 0.0} for row in BAD])
    options = {**given, **SMALL, "--negatives": none, "--output": str(tmp_path / "none")}
    result = call("align", options)
    assert result.exit_code == 0
    assert "every prior weight is 0" in result.output


def test_resume_goes_on_and_equals_the_uninterrupted_run(given, tmp_path, monkeypatch):
    options = {**given, **SMALL, "--outer-steps": "2", "--min-gain": "-100"}
    assert call("align", {**options, "--output": str(tmp_path / "whole")}).exit_code in (0, 1)

    from u2a.alignment.measured_run import MeasuredRun

    real, calls = MeasuredRun.__call__, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(MeasuredRun, "__call__", interrupted)
    broken = call("align", options)
    monkeypatch.setattr(MeasuredRun, "__call__", real)
    assert broken.exit_code == 3
    assert call("align", options).exit_code == 2  # not without --resume
    words = [word for pair in options.items() for word in pair]
    assert CliRunner().invoke(app, ["align", *words, "--resume"]).exit_code in (0, 1)
    for name in ("weights.parquet", "impact.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "whole")]
    assert metrics[0] == metrics[1]


def test_a_signal_saves_and_says_how_to_go_on(given, monkeypatch):
    from u2a.runs.run_folder import RunFolder

    options = {**given, **SMALL, "--max-steps": "4", "--measurements": "4"}
    words = [word for pair in options.items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["u2a", "align", *words])
    real = RunFolder.record

    def stopped(self, event, **values):
        real(self, event, **values)
        if values["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", stopped)
        result = call("align", options)
    assert result.exit_code == 3
    assert shlex.join(["u2a", "align", *words, "--resume"]) in result.stderr
    assert list((Path(options["--output"]) / "checkpoints").glob("inner-*"))
    again = CliRunner().invoke(app, ["align", *words, "--resume"])
    assert again.exit_code in (0, 1), again.stderr


def test_an_error_after_the_folder_was_made_leaves_nothing(given, tmp_path):
    result = call("align", {**given, "--lora-targets": "nonsense"})
    assert result.exit_code == 2
    assert "nonsense" in result.stderr
    assert not (tmp_path / "run").exists()


def test_code_of_a_model_runs_only_by_flag(given, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("trust_remote_code: true\n")
    result = call("align", {**given, "--config": str(file)})
    assert result.exit_code == 2
    assert "--trust-remote-code" in result.stderr


def test_a_fault_of_ours_has_its_own_status(given, monkeypatch):
    from u2a.commands import align

    def broken(_values):
        raise RuntimeError("oh")

    monkeypatch.setattr(align, "run", broken)
    result = call("align", given)
    assert result.exit_code == 70
    assert "fault" in result.stderr


def test_the_written_config_replays_the_run(given, tmp_path):
    first = {**given, "--lora-rank": "2"}
    assert call("impact", first).exit_code == 0
    again = call(
        "impact", {"--config": str(tmp_path / "run" / "config.yaml"), "--output": str(tmp_path / "again")}
    )
    assert again.exit_code == 0, again.output
    import pyarrow.parquet as pq

    tables = [pq.read_table(tmp_path / name / "impact.parquet")["impact"] for name in ("run", "again")]
    assert tables[0].to_pylist() == tables[1].to_pylist()


def test_check_finds_and_exits_1(tmp_path):
    bad = jsonl(tmp_path / "bad.jsonl", [*BAD, BAD[0], {"prompt": "x", "completion": " "}])
    result = call("check", {"--negatives": bad})
    assert result.exit_code == 1
    assert "duplicate" in result.output
    assert "empty-response" in result.output


def test_check_shows_a_few_findings_of_a_kind(tmp_path):
    """A whole file that is wrong is one mistake."""
    pairs = [{"prompt": f"Q {i}", "chosen": "Yes.", "rejected": "No."} for i in range(9)]
    file = jsonl(tmp_path / "pairs.jsonl", pairs)
    words = ["check", "--preferences", file, "--test", file]
    shown = " ".join(CliRunner().invoke(app, words).output.split())
    assert shown.count("look at: leak-test") == 5
    assert "leak-test: 4 more rows like these; --json names them all" in shown
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert len(found["findings"]) == 9


def test_check_of_sound_data_exits_0(tmp_path, model):
    bad = jsonl(tmp_path / "bad.jsonl", BAD)
    assert call("check", {"--negatives": bad, "--model": model}).exit_code == 0
    long = call("check", {"--negatives": bad, "--model": model, "--max-length": "20"})
    assert long.exit_code == 0
    assert "too-long" in long.output


@pytest.mark.parametrize(
    "objective, rows",
    [
        ("reward", [{"prompt": "Tea?"}, {"prompt": "Tea?"}]),
        ("nll", [{"prompt": "Tea?", "completion": "Yes, gladly."}] * 2),
    ],
)
def test_check_reads_preferences_as_the_objective_takes_them(tmp_path, objective, rows):
    """What a refusal of `align` points to can do it."""
    file = jsonl(tmp_path / "good.jsonl", rows)
    found = call("check", {"--preferences": file, "--objective": objective})
    assert found.exit_code == 0, found.output
    assert "good.jsonl:2: look at: duplicate" in found.output
    assert "preferences: 2 rows" in found.output
    as_pairs = call("check", {"--preferences": file})
    assert as_pairs.exit_code == 1
    assert "2 findings, 2 of them make rows unusable" in as_pairs.output
    assert "preferences: 0 rows" in as_pairs.output


BROKEN = [{"prompt": 5, "completion": "b"}, {"prompt": "c", "completion": None}, {"text": "d", "weight": -1}]


def test_check_goes_on_behind_a_row_that_cannot_be_read(tmp_path):
    """It stopped at the first, so a file with many of them took as many calls."""
    rows = [BAD[0], *BROKEN, *[{"prompt": f"{i}"} for i in range(7)], {"prompt": "x", "completion": " "}]
    rows = [{"id": str(i), **row} for i, row in enumerate(rows)]
    file = jsonl(tmp_path / "bad.jsonl", rows)
    shown = call("check", {"--negatives": file})
    assert shown.exit_code == 1
    assert "bad.jsonl:2: unusable: unreadable: `prompt` must be text or a list" in shown.output
    assert "bad.jsonl:3: unusable: unreadable: `completion` is null" in shown.output
    assert "bad.jsonl:4: unusable: unreadable: `weight` is negative" in shown.output
    assert "unreadable: 5 more rows like these" in shown.output
    assert "bad.jsonl:12: unusable: empty-response: the answer is empty" in shown.output
    assert "11 findings, 11 of them make rows unusable" in shown.output
    found = json.loads(call("check", {"--negatives": file, "--json": "--quiet"}).stdout)
    assert [finding["row"] for finding in found["findings"]] == list(range(2, 13))
    assert {finding["kind"] for finding in found["findings"]} == {"unreadable", "empty-response"}
    assert found["rows"] == {"negatives": 2}


def test_check_finds_rows_that_are_labelled_in_part(tmp_path):
    labelled, bare = ({"prompt": "a", "completion": "b", "label": False}, {"prompt": "c", "completion": "d"})
    file = jsonl(
        tmp_path / "bad.jsonl", [labelled, bare, {**labelled, "prompt": "e"}, {**bare, "prompt": "f"}]
    )
    found = json.loads(call("check", {"--negatives": file, "--json": "--quiet"}).stdout)
    assert [(each["row"], each["kind"]) for each in found["findings"]] == [
        (2, "unreadable"),
        (4, "unreadable"),
    ]


def test_check_finds_an_empty_answer_among_preferred_ones(tmp_path):
    file = jsonl(
        tmp_path / "good.jsonl", [{"prompt": "Tea?", "completion": "Yes."}, {"prompt": "a", "completion": ""}]
    )
    found = call("check", {"--preferences": file, "--objective": "nll"})
    assert found.exit_code == 1
    assert "good.jsonl:2: unusable: empty-response" in found.output


def test_split_writes_the_parts(tmp_path):
    rows = [{**PAIR, "prompt": f"Question {i}?"} for i in range(30)]
    source = jsonl(tmp_path / "all.jsonl", rows)
    result = CliRunner().invoke(
        app,
        ["split", source, "--output", str(tmp_path / "parts"), "--validation", "5", "--test", "5"],
    )
    assert result.exit_code == 0, result.output
    names = {p.name for p in (tmp_path / "parts").iterdir()}
    assert names == {f"{n}.jsonl" for n in ("original", "forget", "retain", "validation", "test")}
    assert len((tmp_path / "parts" / "original.jsonl").read_text().splitlines()) == 20


def test_help_is_grouped_as_the_options_are():
    """Every flag stands once, under its part's heading; what all commands have comes last."""
    shown = CliRunner().invoke(app, ["align", "--help"], env={"COLUMNS": "80"}).output
    order = ("\nData:", "--negatives", "\nModel and adapter:", "--lora-rank", "\nGeneral:", "--quiet")
    assert sorted(order, key=shown.index) == list(order)
    assert len(re.findall(r"^  --negatives ", shown, flags=re.M)) == 1
    flags = {spec.flag for spec in schemas.ALIGN.specs.values()}
    assert {flag for flag in flags if not re.search(rf"^  {flag}\b", shown, flags=re.M)} == set()


@pytest.mark.parametrize("command", catalogue.COMMANDS, ids=lambda each: each.name)
def test_help_ends_with_an_example_that_the_command_takes(command):
    shown = CliRunner().invoke(app, [command.name, "--help"]).output
    assert f"Example: {command.example}" in " ".join(shown.replace("\\\n", "").split())
    program, name, *words = shlex.split(command.example)
    assert (program, name) == ("u2a", command.name)
    flags = {word for word in words if word.startswith("--")}
    assert {flag for flag in flags if not re.search(rf"^  {flag}\b", shown, flags=re.M)} == set()
    places = len(words) - sum(1 if word == "--serve" else 2 for word in flags)
    assert (places > 0) == bool(command.arguments)


def test_80_columns_show_every_summary_whole():
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    assert "..." not in shown.partition("Commands:")[2]
    assert "Was it better than what I would have done?\n" in shown


def test_help_uses_a_wide_terminal():
    """In a process of its own: the runner of tests has 80 columns whatever the environment says."""
    command = [sys.executable, "-m", "u2a.cli", "align", "--help"]
    wide = subprocess.run(
        command, env=os.environ | {"COLUMNS": "120"}, capture_output=True, text=True, check=True
    )
    assert 80 < max(map(len, wide.stdout.splitlines())) <= 110
