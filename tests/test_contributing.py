"""CONTRIBUTING.md names what exists; one version everywhere; the citation and the issue forms are whole."""

import re
from pathlib import Path

import pytest
import yaml

from test_architecture import ORDER

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def commanded(text: str) -> set[str]:
    """Targets of every `make …`: lines of code blocks, and code within sentences, which may wrap."""
    lines = re.findall(r"^make ([a-z -]+)", text, flags=re.M)
    words = re.findall(r"`make\s([a-z\s-]+)`", text)
    return {target for found in lines + words for target in found.split()}


def paths(text: str) -> set[str]:
    """What looks like a path of this repository, in code or in a link."""
    named = re.findall(r"`([\w./-]+)`", text) + re.findall(r"\]\(([\w./-]+)\)", text)
    named += re.findall(r"`python ([\w./-]+)", text)
    return {name for name in named if "/" in name or name.endswith((".md", ".py", ".toml", ".txt", ".cff"))}


def released(changelog: str) -> list[str]:
    """Versions with a heading and a date, newest first."""
    return re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changelog, flags=re.M)


def agrees(changelog: str, version: str) -> bool:
    """The newest released version is the package's; before the first release that is 0.1.0."""
    return (released(changelog) or ["0.1.0"])[0] == version


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "README.md", ".github/PULL_REQUEST_TEMPLATE.md"])
def test_every_target_exists(document):
    named = commanded((ROOT / document).read_text(encoding="utf-8"))
    assert named
    assert named <= TARGETS


def test_every_target_is_explained():
    explained = set(re.findall(r'@echo "make ([a-z-]+) ', (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert explained == TARGETS - {"help"}


def test_ci_runs_what_the_guide_tells():
    ran = commanded((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert ran <= TARGETS
    assert ran - {"lint", "types", "test"} <= commanded(GUIDE)  # those three are `make check`
    assert {"lint", "types", "test", "docs"} <= ran


def test_every_path_exists():
    assert len(paths(GUIDE)) > 5
    for path in paths(GUIDE):
        assert (ROOT / path).exists(), f"CONTRIBUTING.md names {path}"


def test_the_import_order_is_the_tested_one():
    told = re.search(r"```\n(types,.*?)```", GUIDE, flags=re.S)[1]
    assert [name.strip().rstrip("/") for name in told.replace("\n", " ").split(",")] == ORDER


@pytest.mark.parametrize(
    "text, wrong",
    [("`make\nnothing`", "nothing"), ("make test nonsense  # x", "nonsense")],
)
def test_a_wrong_target_would_be_noticed(text, wrong):
    assert wrong in commanded(text) - TARGETS


def test_the_change_log_has_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog
    assert agrees(changelog, VERSION)
    assert agrees("## [2.0.1] - 2030-01-02\n\n## [1.0.0] - 2029-01-02\n", "2.0.1")
    assert not agrees("## [2.0.1] - 2030-01-02\n\n## [1.0.0] - 2029-01-02\n", "1.0.0")


def test_the_citation_is_whole():
    """What CFF 1.2.0 requires; `cffconvert --validate` says the same and more."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["version"] == VERSION
    assert citation["license"] == "Apache-2.0"
    assert {"title", "message", "authors"} <= set(citation)
    (paper,) = citation["references"]
    assert paper["type"] == "conference-paper"
    assert paper["url"].endswith("2504.06659")
    assert all(set(author) == {"family-names", "given-names"} for author in paper["authors"])


@pytest.mark.parametrize(
    "place",
    [
        "README.md",
        "docs/index.md",
        "src/u2a/training/card.py",
        "src/u2a/report/templates/model_card.md.j2",
        "src/u2a/report/templates/report.html.j2",
    ],
)
def test_the_paper_has_one_title(place):
    """Cards and reports cite what CITATION.cff cites, under the name and year that it was published with."""
    (paper,) = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    text = " ".join((ROOT / place).read_text(encoding="utf-8").split())
    assert paper["title"] in text
    assert f"{paper['year']}" in text
    assert "Bridging the Gap" not in text


@pytest.mark.parametrize("path", [form for form in FORMS if form.name != "config.yml"], ids=lambda p: p.name)
def test_an_issue_form_parses(path):
    """GitHub's rules for issue forms; and each form asks for no private rows."""
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    for part in form["body"]:
        assert part["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"]["value" if part["type"] == "markdown" else "label"]
        for choice in part["attributes"].get("options", []):
            assert choice["label"]
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert ids
    assert len(ids) == len(set(ids))
    assert "no private rows" in path.read_text(encoding="utf-8")


def test_the_forms_are_those_that_are_meant():
    assert [path.name for path in FORMS] == ["bug.yml", "config.yml", "feature.yml"]
    assert yaml.safe_load((FORMS[0].parent / "config.yml").read_text())["blank_issues_enabled"] is True
    assert "no private rows" in (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")
