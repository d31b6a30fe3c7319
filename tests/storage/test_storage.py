"""Full and read-only disks: the former file stays whole, and the message says what, where and what to do."""

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from u2a.runs.run_folder import RunFolder, whole_file, write_text
from u2a.storage.disk_faults import quiet_when_full, storage_errno, storage_message


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_former_file_and_is_named(tmp_path, monkeypatch, where):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write does: without a name

    owner, name = {"write": (Path, "write_text"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[where]
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(path, "new")
    monkeypatch.undo()
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
    message = storage_message(caught.value, tmp_path)
    assert message.startswith(f"could not write {path}: the disk is full (No space left on device)")
    assert message.endswith("MiB are free there")


def test_a_fault_that_is_not_the_disk_s_stays_as_it_is(tmp_path):
    with pytest.raises(TypeError, match="wrong") as caught, whole_file(tmp_path / "x.txt"):
        raise TypeError("wrong")
    assert caught.value.__cause__ is None
    assert storage_errno(caught.value) is None


def test_causes_may_form_a_ring():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert storage_errno(first) is None


LIMITED = """
import resource, sys
from pathlib import Path
from u2a.runs.run_folder import write_text
path = Path(sys.argv[1])
write_text(path, "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(path, "x" * 5000)
except OSError as error:
    print(error.errno, error.filename)
"""


def test_a_real_write_that_breaks_off_leaves_the_former_file(tmp_path):
    path = tmp_path / "x.txt"
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [str(errno.EFBIG), str(path)]
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB, where the system lets one be made."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("writer", ["text", "safetensors", "parquet"])
def test_a_real_full_disk(small_disk, writer):
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import save_file

    def write(path, size):
        with whole_file(path) as temporary:
            if writer == "text":
                temporary.write_text("x" * 8 * size)
            elif writer == "safetensors":
                save_file({"x": torch.rand(size, dtype=torch.float64)}, temporary)
            else:
                pq.write_table(pa.table({"x": torch.rand(size, dtype=torch.float64).numpy()}), temporary)

    path = small_disk / "x"
    write(path, 10)
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left") as caught:
        write(path, 100_000)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == before
    assert [p.name for p in small_disk.iterdir()] == ["x"]
    assert "the disk is full" in storage_message(caught.value, small_disk)


def test_what_is_the_disk_s_and_what_is_not(tmp_path):
    missing = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "run" / "x"))
    assert "the folder is gone" in storage_message(missing, tmp_path / "run")
    assert storage_message(missing, tmp_path / "elsewhere") is None
    assert storage_message(missing, None) is None
    denied = PermissionError(errno.EACCES, "denied", "/x/y")
    assert storage_message(denied, None).startswith("could not use /x/y: no permission")  # to read, it may be
    assert storage_message(denied, Path("/x")).startswith("could not write /x/y: no permission")
    rust = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    assert storage_errno(rust) == errno.ENOSPC
    wrapped = ValueError("cannot save")
    wrapped.__cause__ = rust
    assert storage_errno(wrapped) == errno.ENOSPC
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    for other in (OSError("not a model"), refused, KeyError("a")):
        assert storage_errno(other) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_on_a_full_disk_says_so_once(capsys):
    handler = quiet_when_full(logging.FileHandler("/dev/full"))
    for _ in range(3):
        handler.handle(logging.LogRecord("u2a", logging.INFO, "", 0, "x", None, None))
    with pytest.raises(OSError, match="No space"):
        handler.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "the log goes on without its file" in said[0]


def test_a_run_whose_versions_were_not_written_gets_them_on_resume(tmp_path):
    with RunFolder.create(tmp_path / "run", {"a": 1}):
        pass
    (tmp_path / "run" / "versions.json").unlink()
    with RunFolder.create(tmp_path / "run", {"a": 1}, resume=True):
        pass
    assert (tmp_path / "run" / "versions.json").is_file()
