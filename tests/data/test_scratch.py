"""The temporary folder: private, gone at the end, faults unwrapped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from datasets import Features, Value

from u2a.data.scratch import new_folder, no_progress_bars, write_rows
from u2a.types import UserError

FEATURES = Features({"n": Value("int64")})


def test_written_rows_come_back() -> None:
    table = write_rows(lambda: ({"n": n} for n in range(450)), FEATURES, "abc")
    assert table["n"] == list(range(450))


def test_faults_come_out_unwrapped() -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        raise UserError("row 2 is bad")

    with pytest.raises(UserError, match=r"^row 2 is bad$"):
        write_rows(rows, FEATURES, "abc")


def test_a_full_disk_is_said() -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device.*set TMPDIR"):
        write_rows(rows, FEATURES, "abc")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_only_its_user_may_read_it() -> None:
    assert new_folder().parent.stat().st_mode & 0o077 == 0


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """A process that loads rows leaves its TMPDIR as it found it."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Q", "completion": "A"}\n')
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = (
        "import os\n"
        "from u2a.data.load import load_negatives\n"
        "loaded = load_negatives('rows.jsonl')\n"
        "print(loaded['response'][0], len(os.listdir('scratch')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"TMPDIR": str(scratch), "TEMP": str(scratch), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["A", "1"]
    assert list(scratch.iterdir()) == []


def test_progress_bars_are_as_before_afterwards() -> None:
    before = datasets.utils.are_progress_bars_disabled()
    with no_progress_bars():
        assert datasets.utils.are_progress_bars_disabled()
    assert datasets.utils.are_progress_bars_disabled() == before
