"""Every dependency has a tested lower and an upper bound, and what the tests run against lies within them."""

import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
TOOLS = re.findall(r'"([a-z-]+>=[^"]+)"', (ROOT / "Makefile").read_text(encoding="utf-8"))
ALL = {"": PROJECT["dependencies"], **EXTRAS, "Makefile": TOOLS}
REQUIREMENTS = [
    pytest.param(Requirement(line), id=f"{extra} {line}") for extra, lines in ALL.items() for line in lines
]


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_it_has_both_bounds(requirement):
    operators = {bound.operator for bound in requirement.specifier}
    assert operators & {">=", "=="}
    assert operators & {"<", "<=", "=="}


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_what_is_installed_lies_within(requirement):
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        pytest.skip(f"{requirement.name} is not installed here")
    assert requirement.specifier.contains(installed)


def test_the_same_package_has_the_same_bounds_everywhere():
    found = {}
    for requirement in (param.values[0] for param in REQUIREMENTS):
        assert found.setdefault(requirement.name, requirement.specifier) == requirement.specifier


def test_the_makefile_s_tools_are_among_them():
    assert {Requirement(line).name for line in TOOLS} == {"cyclonedx-bom", "pip-audit"}


def test_the_page_of_extras_has_every_one_with_what_it_brings():
    """Those for users in the table with their packages, those for developers below it."""
    page = (ROOT / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, flags=re.M))
    for_users = set(EXTRAS) - {"dev", "browser", "docs", "fuzz"}
    assert {name: set(brings.split(", ")) for name, brings in rows.items()} == {
        name: {Requirement(line).name for line in EXTRAS[name]} for name in for_users
    }
    assert all(f"`{name}`" in page for name in EXTRAS)


def _audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "printed, status, words",
    [
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', 0, "1 packages looked up"),
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X-1"}]}]}', 1, "a 1: X-1"),
        ('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}', 2, "could not reach"),
        ('{"dependencies": [{"name": "u2a", "skip_reason": "editable"}]}', 2, "could not reach"),
        ('{"dependencies": []}', 2, "could not reach"),
        ("", 2, "could not reach"),
    ],
)
def test_an_audit_that_asked_nobody_is_no_clean_audit(printed, status, words):
    """pip-audit exits with 0 and "no known vulnerabilities" where the index has no advisories."""
    found, why = _audit().verdict(printed, "ConnectionError: no route", "osv")
    assert found == status
    assert words in why
