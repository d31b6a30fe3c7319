"""`u2a verify` from end to end on a tiny saved model: files, statuses, resume, processes, refusals."""

import errno
import io
import json
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from u2a.cli import app
from u2a.commands.verify_workers import watch
from u2a.types import GuardStop
from u2a.verification.truth import GroundTruth

PAIRS = [
    {"prompt": f"Question {i}?", "chosen": f"Answer {i}, with care.", "rejected": "Go away, I will not."}
    for i in range(5)
]
BAD = [{"prompt": f"Bad {i}?", "completion": f"No {i}, go away. " * (i + 1)} for i in range(8)]
MEASURED = ["subset", "seed", "members", "objective_change", "utility_change", "held_out_change", "kl"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Options of a small run: 4 subsets of 2 of 8 negatives, 1 repeat."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "--model": str(save_tiny(folder / "model", "qwen")),
        "--negatives": jsonl(folder / "bad.jsonl", BAD),
        "--preferences": jsonl(folder / "pairs.jsonl", PAIRS),
        "--test": jsonl(folder / "test.jsonl", [{**pair, "prompt": "Held out?"} for pair in PAIRS]),
        "--lora-rank": "2",
        "--learning-rate": "1e-2",
        "--subsets": "4",
        "--repeats": "1",
    }


def call(options, *more):
    words = [word for pair in options.items() for word in pair]
    return CliRunner().invoke(app, ["verify", *words, *more])


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    """A finished run and what it printed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, call({**given, "--output": str(run)})


def measured(run):
    return pq.read_table(run / "subsets.parquet", columns=MEASURED).to_pylist()


def test_it_writes_everything_and_says_the_verdict_last(whole):
    run, result = whole
    assert result.exit_code in (0, 1), result.output + result.stderr
    files = {path.name for path in run.iterdir()}
    assert files >= {"verify.json", "subsets.parquet", "impact.parquet", "report.html", "summary.json"}
    assert files >= {"config.yaml", "versions.json", "run.log", "cells"}
    figures = json.loads((run / "verify.json").read_text())
    assert figures["runs"] == 5 == len(list((run / "cells").iterdir()))
    assert set(figures["controls"]) >= {"random", "length", "mean_logprob", "gradient_norm", "cosine", "bm25"}
    assert set(figures["estimators"]["diagonal"]) == {"validation", "held_out"}
    assert "U" in figures["estimators"]["diagonal"]["validation"]
    assert result.output.index("5 runs") < result.output.index("LDS")  # the cost comes first
    last = result.output.strip().splitlines()[-1]
    lds = figures["estimators"]["diagonal"]["validation"]["J"]["lds"]
    assert f"diagonal has LDS {lds:.2f}" in last
    assert last.startswith("Finding") == (result.exit_code == 1)
    for name in figures["controls"]:
        assert f"– {name}" in result.output


def test_the_report_shows_both_figures_and_can_be_written_again_without_text(whole):
    run, _ = whole
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in ("Predicted against measured", "Estimators and controls", "gradient_norm", "No 7, go away."):
        assert words in page
    assert CliRunner().invoke(app, ["report", str(run), "--no-text"]).exit_code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "go away." not in page
    assert "Predicted against measured" in page


def test_no_text_of_a_row_is_in_the_figures(whole):
    run, _ = whole
    for path in [run / "verify.json", *(run / "cells").iterdir()]:
        assert "go away" not in path.read_text().lower()


def test_resume_after_an_interruption_equals_the_whole_run(given, whole, tmp_path, monkeypatch):
    real, calls = GroundTruth.run, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *args)

    options = {**given, "--output": str(tmp_path / "run")}
    monkeypatch.setattr(GroundTruth, "run", interrupted)
    broken = call(options)
    assert broken.exit_code == 3
    assert "--resume" in broken.stderr
    refused = call({**options, "--learning-rate": "1e-3"}, "--resume")
    assert refused.exit_code == 2
    assert "learning_rate" in refused.stderr
    assert call(options).exit_code == 2  # not without --resume
    resumed = call({**options, "--estimators": "adam,identity"}, "--resume")  # this may change
    assert resumed.exit_code in (0, 1), resumed.stderr
    assert "3 of them already there" in resumed.output
    assert len(calls) == 6
    assert measured(tmp_path / "run") == measured(whole[0])
    figures = json.loads((tmp_path / "run" / "verify.json").read_text())
    assert figures["chosen"] == "adam"
    assert list(figures["estimators"]) == ["adam", "identity"]
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["estimators"] == "adam,identity"


def test_a_cell_of_another_run_is_refused(given, whole, tmp_path):
    """The same settings on another model, in a folder that was copied."""
    shutil.copytree(whole[0], tmp_path / "run")
    other = save_tiny(tmp_path / "other", "qwen", seed=1)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(given["--model"], str(other)))
    options = {**given, "--model": str(other), "--output": str(tmp_path / "run")}
    result = call(options, "--resume")
    assert result.exit_code == 2
    assert "U of the original model" in result.stderr
    assert "subset-0000-seed-0.json" in result.stderr


def test_two_processes_measure_the_same(given, whole, tmp_path):
    """One cell for each of them; the others are kept."""
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    for name in ("subset-0001-seed-0.json", "subset-0002-seed-0.json"):
        (run / "cells" / name).unlink()
    result = call({**given, "--output": str(run), "--processes": "2"}, "--resume")
    assert result.exit_code in (0, 1), result.output + result.stderr
    for found, expected in zip(measured(run), measured(whole[0]), strict=True):
        assert found.pop("members") == expected.pop("members")
        assert found == pytest.approx(expected, abs=1e-4)


def test_the_command_killed_while_its_workers_work_goes_on(given, whole, tmp_path):
    """SIGKILL of the command alone: its workers end by themselves, and --resume makes what is missing."""
    run = tmp_path / "run"
    options = {**given, "--output": str(run), "--processes": "2"}
    words = [word for pair in options.items() for word in pair]
    command = [sys.executable, "-m", "u2a.cli", "verify", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(run.glob("cells/*.json")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children()
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert len(workers) == 2
    gone, _ = psutil.wait_procs(workers, timeout=60)
    assert len(gone) == 2
    before = {path.name: path.read_bytes() for path in run.glob("cells/*.json")}
    assert before
    resumed = call(options, "--resume")
    assert resumed.exit_code in (0, 1), resumed.output + resumed.stderr
    assert {name: (run / "cells" / name).read_bytes() for name in before} == before
    for found, expected in zip(measured(run), measured(whole[0]), strict=True):
        assert found.pop("members") == expected.pop("members")
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_worker_that_dies_is_named_and_the_advice_is_to_resume():
    codes = ["raise SystemExit(0)", "raise SystemExit(7)"]
    workers = [subprocess.Popen([sys.executable, "-c", code], text=True) for code in codes]
    with pytest.raises(GuardStop, match=r"worker 1 of 2 ended with status 7.*--resume"):
        watch(workers, lambda: 0, None)


def test_a_killed_worker_says_what_it_was_at_and_what_is_kept(tmp_path):
    """The plan's runs are dealt out in turn; of worker 1's, the first is there already."""
    from u2a.config import UnlearnOptions
    from u2a.verification.cells import Cells
    from u2a.verification.plan import make_plan

    plan = make_plan(8, 2, UnlearnOptions(max_steps=1), subsets=4, singles=0, seeds=1, repeats=2, seed=0)
    cells = Cells(tmp_path, plan, {})
    own = plan.runs[1::2]
    cells.path(own[0]).write_text("{}")
    workers = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], text=True) for _ in range(2)
    ]
    workers[1].kill()
    place = rf"at subset {own[1].subset}, seed {own[1].seed}, .*finished cells are kept.*--resume"
    try:
        with pytest.raises(GuardStop, match=f"worker 1 of 2 was ended by SIGKILL.*{place}"):
            watch(workers, cells.finished, None, cells.under_way)
    finally:
        workers[0].kill()
        workers[0].wait()


def test_a_worker_on_a_full_disk_says_so(tmp_path, monkeypatch, capsys):
    from u2a.commands import verify_workers

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "cells" / "x.json"))

    (tmp_path / "config.yaml").write_text("a: 1")
    monkeypatch.setattr(verify_workers, "work", full)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"output": str(tmp_path)})))
    assert verify_workers.main(1, 2) == 3
    said = capsys.readouterr().err
    assert said.startswith("u2a: worker 1: could not write")
    assert "--resume" in said


def test_watching_counts_new_cells():
    counts, seen = iter([1, 1, 3, 3, 3, 3, 3]), []
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"], text=True)
    watch([worker], lambda: next(counts), seen.append)
    assert seen == [2]


BAD_INPUT = {
    "share": ({"--subset-share": "100%"}, ["--subset-share 100%"]),
    "singles": ({"--singles": "9"}, ["--singles 9", "8"]),
    "estimator": ({"--estimators": "magic"}, ["magic", "identity"]),
    "too few subsets": ({"--subsets": "3"}, ["--subsets", "4"]),
    "standard input": ({"--negatives": "-", "--processes": "2"}, ["--processes", "file"]),
    "missing file": ({"--test": "nowhere.jsonl"}, ["nowhere.jsonl"]),
    "resume of nothing": ({"--seed": "0"}, ["--resume", "no run"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_exits_2_with_one_message_and_writes_nothing(given, tmp_path, case, monkeypatch):
    import u2a.models.policy

    def never(*_, **__):
        raise AssertionError("a model was loaded before the input had been checked")

    monkeypatch.setattr(u2a.models.policy, "load_policy", never)
    changed, words = BAD_INPUT[case]
    options = {**given, "--output": str(tmp_path / "run"), **changed}
    bad = "".join(json.dumps(row) + "\n" for row in BAD)
    arguments = [word for pair in options.items() for word in pair]
    more = ["--resume"] if case == "resume of nothing" else []
    result = CliRunner().invoke(app, ["verify", *arguments, *more], input=bad)
    assert result.exit_code == 2, result.output + result.stderr
    message = result.stderr.strip()
    assert message.startswith("u2a: ")
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_command_is_not_resumed(given, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("loss: npo\n")
    result = call({**given, "--output": str(tmp_path / "run")}, "--resume")
    assert result.exit_code == 2
    assert "not of a `u2a verify` run" in result.stderr


def test_it_explains_itself():
    result = CliRunner().invoke(app, ["verify", "--help"])
    assert result.exit_code == 0
    for flag in ("--subsets", "--subset-share", "--estimators", "--processes", "--singles"):
        assert flag in result.output
