"""`u2a align` on a machine that fails: one message, the right status, and --resume ends as it would have."""

import errno
import os
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from u2a.cli import app
from u2a.types import OutOfMemory

PAIRS = [
    {"prompt": f"Question {i}?", "chosen": f"Answer {i}, with care.", "rejected": "Go away."}
    for i in range(5)
]
BAD = [{"prompt": f"Bad {i}?", "completion": "No. " * (i + 1)} for i in range(5)]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Options of a small run of one outer step."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "--model": str(save_tiny(folder / "model", "qwen")),
        "--negatives": jsonl(folder / "bad.jsonl", BAD),
        "--preferences": jsonl(folder / "pairs.jsonl", PAIRS),
        "--lora-rank": "2",
        "--learning-rate": "1e-2",
        "--kl-budget": "0",
        "--max-nll-rise": "100",
        "--outer-steps": "1",
        "--min-gain": "-100",
    }


def call(options, *more):
    words = [word for pair in options.items() for word in pair]
    return CliRunner().invoke(app, ["align", *words, *more])


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    """The weights of a run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert call({**given, "--output": str(run)}).exit_code in (0, 1)
    return pq.read_table(run / "weights.parquet")


def message_of(result, status):
    assert result.exit_code == status, result.output + result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("u2a: ")
    return last


def fail_at(monkeypatch, number):
    """The disk is full at the write of that number, and at all after it."""
    real, calls = os.fsync, []

    def fsync(handle):
        calls.append(1)
        if len(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_disk_that_is_full_from_the_start(given, tmp_path, monkeypatch):
    fail_at(monkeypatch, 1)
    message = message_of(call({**given, "--output": str(tmp_path / "run")}), 2)
    assert "config.yaml: the disk is full" in message
    assert "begin again" in message
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("number", [2, 4, 5], ids=["versions", "checkpoint", "results"])
def test_a_disk_that_fills_up_can_be_gone_on_from(given, whole, tmp_path, monkeypatch, number):
    options = {**given, "--output": str(tmp_path / "run")}
    fail_at(monkeypatch, number)
    message = message_of(call(options), 3)
    assert "the disk is full" in message
    assert str(tmp_path / "run") in message
    assert "--resume" in message
    monkeypatch.undo()
    assert call(options, "--resume").exit_code in (0, 1)
    assert pq.read_table(tmp_path / "run" / "weights.parquet").equals(whole)
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("where", ["file/run", "/proc/u2a-run"])
def test_a_folder_that_cannot_be_made(given, tmp_path, where):
    (tmp_path / "file").write_text("mine")
    output = where if where.startswith("/") else str(tmp_path / where)
    message = message_of(call({**given, "--output": output}), 2)
    assert output in message
    assert "begin again" in message
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_vanishes(given, tmp_path, monkeypatch):
    from u2a.alignment.measured_run import MeasuredRun

    real = MeasuredRun.__call__

    def gone(self, *args):
        shutil.rmtree(tmp_path / "run")
        return real(self, *args)

    monkeypatch.setattr(MeasuredRun, "__call__", gone)
    message = message_of(call({**given, "--output": str(tmp_path / "run")}), 2)
    assert "the folder is gone" in message


def test_a_disk_that_turns_read_only_at_the_model(given, tmp_path, monkeypatch):
    from u2a.models.policy import Policy

    def refuse(_self, folder, _state):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))

    monkeypatch.setattr(Policy, "save", refuse)
    message = message_of(call({**given, "--output": str(tmp_path / "run")}), 3)
    assert "adapter: the disk is read-only" in message


@pytest.mark.parametrize(
    "error, words",
    [
        (OutOfMemory("out of memory in training with the negative row 3 alone. Lower it"), "row 3"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "9 GiB"),
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out of memory"),
    ],
    ids=["ours", "cuda", "python", "system"],
)
def test_memory_that_runs_out_for_good(given, tmp_path, monkeypatch, error, words):
    from u2a.commands import align

    def fail(_values):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text("a: 1")
        raise error

    monkeypatch.setattr(align, "run", fail)
    message = message_of(call({**given, "--output": str(tmp_path / "run")}), 3)
    assert words in message
    assert "--resume" in message
