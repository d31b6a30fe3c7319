"""What `make` sets up: once, and for the demo no more than the package."""

import os
import shutil
import subprocess

import pytest

from documents import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
RECORD = '#!/bin/sh\necho "$(basename "$0") $*" >> calls\n'


@pytest.fixture
def folder(tmp_path):
    """The Makefile beside a `.venv` whose programs only note how they were called."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (1, 1))
    for name in ("python", "u2a"):
        program = tmp_path / ".venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(RECORD)
        program.chmod(0o755)
    return tmp_path


def made(folder, target):
    """What the target calls: installations, then the rest."""
    (folder / "calls").unlink(missing_ok=True)
    subprocess.run(["make", target], cwd=folder, check=True, capture_output=True)
    calls = (folder / "calls").read_text().splitlines()
    installed = [call.rpartition("--editable ")[2] for call in calls if " pip install " in call]
    return installed, [call.split()[:3] for call in calls if " pip install " not in call]


def test_the_demo_installs_the_package_alone_and_the_tests_the_rest_each_once(folder):
    demo = [["u2a", "demo", "--output"]]
    assert made(folder, "demo") == (["."], demo)
    assert made(folder, "demo") == ([], demo)
    tests = [["python", "-m", "pytest"]]
    assert made(folder, "test") == ([".[dev,docs]"], tests)
    assert made(folder, "test") == ([], tests)
    assert made(folder, "demo") == ([], demo)


def test_after_the_tests_the_demo_installs_nothing(folder):
    assert made(folder, "test")[0] == [".", ".[dev,docs]"]
    assert made(folder, "demo")[0] == []


def test_another_pyproject_is_set_up_again(folder):
    made(folder, "test")
    for name, time in (("pyproject.toml", 3), (".venv/.demo", 2), (".venv/.installed", 2)):
        os.utime(folder / name, (time, time))
    assert made(folder, "demo")[0] == ["."]
    assert made(folder, "test")[0] == [".[dev,docs]"]
    assert made(folder, "test")[0] == []
