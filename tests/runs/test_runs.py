"""The run folder: whole files, refusals, phases."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from u2a.runs import run_lock
from u2a.runs.run_folder import RunFolder, whole_file, whole_folder, write_json, write_text
from u2a.storage.files import sweep
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


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.log", "report.html", "checkpoints", "cells/a.json"])
def test_a_run_with_a_link_out_of_it_is_not_gone_on_with(tmp_path, name):
    """What is appended or written would land in the file that the link leads to."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    run = tmp_path / "run"
    with RunFolder.create(run, {"a": 1}) as made:
        made.record("x")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(precious)
    with pytest.raises(UserError, match="is a link that leads out of"):
        RunFolder.create(run, {"a": 1}, resume=True)
    assert precious.read_text() == "kept"


def test_a_whole_file_takes_the_place_of_a_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "report.html").symlink_to(precious)
    write_text(tmp_path / "report.html", "new")
    assert precious.read_text() == "kept"
    assert (tmp_path / "report.html").read_text() == "new"


def test_no_text_can_forge_a_line_of_the_log(tmp_path):
    import logging

    with RunFolder.create(tmp_path / "run", {}):
        logging.getLogger("u2a").warning("name %s", "x\n2026-01-01 INFO all is well\x1b[2J\x9b\u202e")
    lines = (tmp_path / "run" / "run.log").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("name x\\x0a2026-01-01 INFO all is well\\x1b[2J\\x9b\\x202e")


def test_a_hostile_configuration_of_a_run_is_not_read(tmp_path):
    with RunFolder.create(tmp_path / "run", {"a": 1}):
        pass
    (tmp_path / "run" / "config.yaml").write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match=r"config\.yaml is not readable"):
        RunFolder.create(tmp_path / "run", {"a": 1}, resume=True)


@pytest.mark.parametrize("umask, mode", [(0o077, 0o600), (0o022, 0o644), (0o007, 0o660)])
def test_files_are_readable_by_no_more_people_than_the_umask_allows(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "answers.jsonl", "private")
        with whole_file(tmp_path / "again") as temporary:
            temporary.unlink()  # as a library may that writes beside and renames
            temporary.write_text("private")
    finally:
        os.umask(before)
    for name in ("answers.jsonl", "again"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_second_run_into_a_folder_is_refused_and_named(tmp_path):
    with RunFolder.create(tmp_path / "run", {"seed": 1}), pytest.raises(UserError, match=str(os.getpid())):
        RunFolder.create(tmp_path / "run", {"seed": 1}, resume=True)
    with RunFolder.create(tmp_path / "run", {"seed": 1}, resume=True):
        pass


def test_a_lock_that_is_a_link_is_not_written_through(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(precious)
    with pytest.raises(UserError, match="the lock of a run is a link"):
        RunFolder.create(tmp_path / "run", {"seed": 1})
    assert precious.read_text() == "kept"


def test_a_run_that_knew_fewer_options_is_not_gone_on_with(tmp_path):
    """What a later version does by default, it did not do when it began."""
    with RunFolder.create(tmp_path / "run", {"seed": 1}, command="align"):
        pass
    with pytest.raises(UserError, match=r"new differ from .*config.yaml; keep them, or begin a new run"):
        RunFolder.create(tmp_path / "run", {"seed": 1, "new": "x"}, command="align", resume=True)


def test_a_run_of_another_command_is_not_gone_on_with(tmp_path):
    with RunFolder.create(tmp_path / "run", {"seed": 1}, command="impact"):
        pass
    with pytest.raises(UserError, match="is a run of `u2a impact`"):
        RunFolder.create(tmp_path / "run", {"seed": 1}, command="align", resume=True)


def test_what_was_done_before_an_error_is_kept(tmp_path):
    """A scorer that is down after an hour, say: the work can be gone on with."""

    def fails():
        with RunFolder.create(tmp_path / "run", {"seed": 1}, command="align") as run:
            write_text(run.path / "checkpoints" / "scores", "an hour's")
            raise UserError("the scorer is down")

    with pytest.raises(UserError, match="the scorer is down"):
        fails()
    with RunFolder.create(tmp_path / "run", {"seed": 1}, command="align", resume=True) as run:
        assert (run.path / "checkpoints" / "scores").read_text() == "an hour's"


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


@pytest.mark.parametrize("killed", [False, True])
def test_a_folder_whose_new_one_never_came_is_put_back(tmp_path, monkeypatch, killed):
    """The rename into place fails, or the process is killed just before it."""
    with whole_folder(tmp_path / "adapter") as folder:
        (folder / "weights").write_text("old")
    if killed:
        (tmp_path / "adapter").rename(tmp_path / ".adapter.0123456789abcdef-before.part")
        sweep(tmp_path)
    else:
        rename = Path.rename

        def fails(path, target):
            if path.name.endswith(".part") and not path.name.endswith("-before.part"):
                raise OSError(5, "broken")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", fails)
        with pytest.raises(OSError, match="adapter"), whole_folder(tmp_path / "adapter") as folder:
            (folder / "weights").write_text("new")
    assert (tmp_path / "adapter" / "weights").read_text() == "old"
