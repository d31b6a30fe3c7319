"""Cells on disk: kept, refused when made otherwise, and one maker at a time."""

import json
import subprocess
import sys

import pytest

from u2a.compare.cells import CellStore
from u2a.compare.plan import CellName
from u2a.types import UserError

NAME = CellName("uniform", 1e-4, 0, True)


def test_what_is_written_is_read(tmp_path):
    store = CellStore(tmp_path, {"uniform": {"loss": "npo", "select": ("a",)}})
    assert store.read(NAME) is None
    store.write(NAME, {"seconds": 1.5})
    assert store.read(NAME)["seconds"] == 1.5


def test_other_options_are_refused(tmp_path):
    CellStore(tmp_path, {"uniform": {"loss": "npo"}}).write(NAME, {})
    with pytest.raises(UserError, match="made with other options of uniform"):
        CellStore(tmp_path, {"uniform": {"loss": "ga"}}).read(NAME)


def test_an_option_that_a_cell_does_not_know_was_at_its_default(tmp_path):
    CellStore(tmp_path, {"uniform": {"loss": "npo"}}).write(NAME, {})
    defaults = {"uniform": {"joint": 0.0}}
    CellStore(tmp_path, {"uniform": {"loss": "npo", "joint": 0.0}}, defaults=defaults).read(NAME)
    other = CellStore(tmp_path, {"uniform": {"loss": "npo", "joint": 1.0}}, defaults=defaults)
    with pytest.raises(UserError, match="made with other options of uniform"):
        other.read(NAME)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_cell_is_set_aside_said_and_made_again(tmp_path, caplog, text):
    path = tmp_path / NAME.file
    path.write_text(text)
    store = CellStore(tmp_path, {"uniform": {}})
    assert store.read(NAME) is None
    assert f"{path} is damaged" in caplog.text
    assert (tmp_path / f"{NAME.file}.damaged").read_text() == text
    with store.claim(NAME) as mine:
        assert mine


def test_a_cell_that_cannot_be_read_is_no_damaged_one(tmp_path, monkeypatch):
    path = tmp_path / NAME.file
    path.write_text("{}")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_text", refused)
    with pytest.raises(UserError, match="Permission denied"):
        CellStore(tmp_path, {"uniform": {}}).read(NAME)
    assert path.is_file()


def test_a_finished_cell_is_nobodys_to_make(tmp_path):
    store = CellStore(tmp_path, {"uniform": {}})
    with store.claim(NAME) as mine:
        assert mine
    store.write(NAME, {})
    with store.claim(NAME) as mine:
        assert not mine


def test_a_cell_under_way_is_nobody_elses(tmp_path):
    """A lock belongs to an opened file: a second opening here is as good as one by another process."""
    store, other = (CellStore(tmp_path, {"uniform": {}}) for _ in range(2))
    with store.claim(NAME) as mine:
        assert mine
        with other.claim(NAME) as theirs:
            assert not theirs
        with other.claim(CellName("uniform", 1e-4, 1, True)) as next_seed:
            assert next_seed
    with other.claim(NAME) as theirs:
        assert theirs


def test_cells_are_json(tmp_path):
    store = CellStore(tmp_path, {"uniform": {"loss": "npo"}}, "a model")
    store.write(NAME, {"seconds": 1.0})
    assert json.loads((tmp_path / NAME.file).read_text()) == {
        "seconds": 1.0,
        "model": "a model",
        "settings": {"loss": "npo"},
    }


MAKER = """
import fcntl, sys, time
with open(sys.argv[1], "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("mine", flush=True)
    time.sleep(600)
"""


def test_a_cell_whose_maker_was_killed_is_free_again(tmp_path):
    store, lock = CellStore(tmp_path, {"uniform": {}}), tmp_path / f".{NAME.file}.lock"
    maker = subprocess.Popen([sys.executable, "-c", MAKER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert maker.stdout.readline().strip() == "mine"
    with store.claim(NAME) as mine:
        assert not mine
    maker.kill()
    maker.communicate()
    with store.claim(NAME) as mine:
        assert mine


def test_a_lock_that_is_a_link_is_not_opened(tmp_path):
    """In a shared folder, it would empty the file that it leads to."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    cells = tmp_path / "cells"
    cells.mkdir()
    (cells / f".{NAME.file}.lock").symlink_to(precious)
    with pytest.raises(UserError, match=r"the lock of a cell"), CellStore(cells, {"uniform": {}}).claim(NAME):
        pytest.fail("it was opened")
    assert precious.read_text() == "kept"


def test_a_cell_is_written_beside_a_link_not_through_it(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    store = CellStore(tmp_path / "cells", {"uniform": {}})
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / NAME.file).symlink_to(precious)
    store.write(NAME, {"seconds": 1.0})
    assert precious.read_text() == "kept"
    assert store.read(NAME)["seconds"] == 1.0
