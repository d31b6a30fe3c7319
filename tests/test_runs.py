"""The run folder: whole files, refusals, phases."""

import json
import time

import pytest
import yaml

from u2a.runs import RunFolder, whole_file, write_json, write_text
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
    RunFolder.create(tmp_path / "run", {"seed": 1, "loss": "npo"})
    RunFolder.create(tmp_path / "run", {"seed": 1, "loss": "npo"}, resume=True)
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
