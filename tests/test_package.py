"""Wheel and sdist: built without a network, with all that the package needs at run time and nothing else."""

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytest.importorskip("build", reason="needs the extra `dev`")
tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCE = ROOT / "src" / "u2a"
NAME = f"u2a-{PROJECT['version']}"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The wheel, built from the sdist as installers do, and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in folder.iterdir()) == [f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz"]
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as opened:
        yield opened


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    """Templates, demo rows and py.typed among it, byte for byte."""
    files = {
        f"u2a/{path.relative_to(SOURCE).as_posix()}": path
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for needed in ("py.typed", "report/templates/report.html.j2", "demo_data/negatives.jsonl"):
        assert f"u2a/{needed}" in files
    packed = {name for name in wheel.namelist() if not name.startswith(f"{NAME}.dist-info/")}
    assert packed == set(files)
    for name, path in files.items():
        assert wheel.read(name) == path.read_bytes(), name


def test_the_wheel_says_what_it_is(wheel):
    metadata = Parser().parsestr(wheel.read(f"{NAME}.dist-info/METADATA").decode())
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert metadata.get_payload().startswith("# u2a: Unlearning to Align")
    assert f"{NAME}.dist-info/licenses/LICENSE" in wheel.namelist()
    assert b"u2a = u2a.cli:main" in wheel.read(f"{NAME}.dist-info/entry_points.txt")


def test_the_sdist_can_be_tested_and_documented(dist):
    """`make test docs` need these; runs, environments and what else lies about stay out."""
    with tarfile.open(dist / f"{NAME}.tar.gz") as opened:
        names = {name.removeprefix(f"{NAME}/") for name in opened.getnames()}
    for needed in (
        *("Makefile", "constraints.txt", "mkdocs.yml", "README.md", "CONTRIBUTING.md", "CITATION.cff"),
        *("tests/cases.py", "docs/tutorial.ipynb", "docs/pipeline.svg", "examples/align.yaml", ".ci/run"),
        *("src/u2a/py.typed", ".github/ISSUE_TEMPLATE/bug.yml"),
    ):
        assert needed in names
    tops = {name.split("/")[0] for name in names}
    assert not tops & {".venv", ".audit", "runs", "dist", "site", "build"}
    assert not [name for name in names if name.endswith((".pyc", ".log"))]
