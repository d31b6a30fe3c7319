"""The run folder: whole files, refusals, phases."""

import json
import os
import time

import pytest
import yaml

from u2a import run_lock
from u2a.runs import RunFolder, whole_file, whole_folder, write_json, write_text
from u2a.types import UserError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def half():
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_json_never_holds_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_create_writes_what_replays_the_run(tmp_path):
    run = RunFolder.create(tmp_path / "run", {"loss": "npo", "seed": 3, "output": "x", "resume": False})
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == {"loss": "npo", "seed": 3}
    assert json.loads((run.path / "versions.json").read_text())["torch"]


def test_refusals(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        RunFolder.check(tmp_path / "file", resume=False)
    with pytest.raises(UserError, match="not empty"):
        RunFolder.check(tmp_path, resume=False)
    with pytest.raises(UserError, match="holds no run"):
        RunFolder.check(tmp_path, resume=True)
    RunFolder.check(tmp_path / "new", resume=False)


def test_resume_refuses_another_configuration(tmp_path):
    with RunFolder.create(tmp_path / "run", {"seed": 1, "loss": "npo"}):
        pass
    with RunFolder.create(tmp_path / "run", {"seed": 1, "loss": "npo"}, resume=True):
        pass
    with pytest.raises(UserError, match="seed differ"):
        RunFolder.create(tmp_path / "run", {"seed": 2, "loss": "npo"}, resume=True)


def test_record_appends_lines(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    run.record("measurement", objective=-0.5)
    run.record("measurement", objective=-0.4)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["objective"] for line in lines] == [-0.5, -0.4]


def test_phases_add_up_and_see_memory(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    for _ in range(2):
        with run.phase("work"):
            block = bytearray(50_000_000)
            time.sleep(0.06)
    cost = run.phases["work"]
    assert cost.seconds >= 0.12
    assert cost.peak_bytes >= len(block)


def test_a_second_run_into_a_folder_is_refused_and_named(tmp_path):
    with RunFolder.create(tmp_path / "run", {"seed": 1}), pytest.raises(UserError, match=str(os.getpid())):
        RunFolder.create(tmp_path / "run", {"seed": 1}, resume=True)
    with RunFolder.create(tmp_path / "run", {"seed": 1}, resume=True):
        pass


def test_runs_that_share_a_folder_keep_others_out(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.0)
    path = tmp_path / "run"
    sharing = {"resume": True, "shared": True}
    with RunFolder.create(path, {"seed": 1}, shared=True), RunFolder.create(path, {"seed": 1}, **sharing):
        with pytest.raises(UserError, match="at work"):
            RunFolder.create(path, {"seed": 1}, resume=True)
        with pytest.raises(UserError, match="differ"):
            RunFolder.create(path, {"seed": 2}, **sharing)
    with RunFolder.create(path, {"seed": 1}, resume=True), pytest.raises(UserError, match="at work"):
        RunFolder.create(path, {"seed": 1}, **sharing)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_before_its_configuration_is_begun_again(tmp_path, resume):
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".config.yaml.abc.part").write_text("loss: n")
    with RunFolder.create(tmp_path, {"seed": 1}, resume=resume) as run:
        assert yaml.safe_load((run.path / "config.yaml").read_text()) == {"seed": 1}
        assert json.loads((run.path / "versions.json").read_text())["torch"]
    assert not list(tmp_path.glob(".*.part"))


def test_resume_mends_what_a_kill_left(tmp_path):
    """Versions that were not written yet, temporaries in subfolders, half a last line."""
    with RunFolder.create(tmp_path / "run", {"seed": 1}) as run:
        run.record("measurement", objective=-0.5)
    (run.path / "versions.json").unlink()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "meas')
    (run.path / "cells").mkdir()
    (run.path / "cells" / ".x.json.abc.part").write_text("{")
    (run.path / ".adapter.abc.part").mkdir()
    (run.path / ".hidden").write_text("the user's")
    with RunFolder.create(tmp_path / "run", {"seed": 1}, resume=True):
        assert json.loads((run.path / "versions.json").read_text())["torch"]
        assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 1
        assert not list(run.path.rglob("*.part"))
        assert (run.path / ".hidden").is_file()


def test_costs_go_on_from_where_they_were(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run, run.phase("work"):
        time.sleep(0.05)
        run.record("measurement")
        kept = json.loads((run.path / "costs.json").read_text())
        assert kept[0]["seconds"] >= 0.05  # of a phase under way: a kill would not lose it
    with RunFolder.create(tmp_path / "run", {}, resume=True) as run, run.phase("work"):
        time.sleep(0.05)
    assert run.phases["work"].seconds >= 0.1
    assert run.phases["work"].peak_bytes > 0


def test_a_folder_is_replaced_whole_or_stays(tmp_path):
    for content in ("old", "new"):
        with whole_folder(tmp_path / "adapter") as folder:
            (folder / "weights").write_text(content)
    assert (tmp_path / "adapter" / "weights").read_text() == "new"

    def half():
        with whole_folder(tmp_path / "adapter") as folder:
            (folder / "weights").write_text("half")
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        half()
    assert (tmp_path / "adapter" / "weights").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
