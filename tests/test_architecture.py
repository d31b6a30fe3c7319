"""One direction: a module imports only from earlier ones in the list, and siblings never each other."""

import ast
from pathlib import Path

import pytest

import u2a

PACKAGE = Path(u2a.__file__).parent
ORDER = [
    "types",
    "processes",
    "cost_model",
    "ngrams",
    "printable",
    "plugins",
    "interruption",
    "storage",
    "config",
    "schema",
    "runs",
    "data",
    "logprobs",
    "models",
    "passes",
    "scorers",
    "objectives",
    "losses",
    "validation",
    "problem",
    "preparation",
    "answers",
    "fingerprint",
    "impact",
    "weighting",
    "training",
    "trainer",
    "alignment",
    "trajectory",
    "verification",
    "evaluation",
    "baselines",
    "compare",
    "report",
    "served",
    "review",
    "chat",
    "commands",
    "cli",
]
STOOD_ON = (
    "answer_cache", "endpoint", "figure", "http_scorer", "judge_client", "judge_connection",
    "label_probabilities", "material", "own_judge", "pairwise", "readings", "choice", "rounded_weights",
    "subject",
)  # fmt: skip
SIBLINGS_APART = {"losses": (), "objectives": ("drawn_reward",), "evaluation": STOOD_ON}
"""Rooms whose files never import each other, but for those that they all stand on."""
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room(name: str) -> str:
    """`u2a.impact.scores` -> `impact`."""
    return name.split(".")[1]


def imports(path: Path) -> set[str]:
    """Every u2a module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("u2a"):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("u2a.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imports(path):
        if module == "u2a":
            continue
        assert ORDER.index(room(module)) <= ORDER.index(own), f"{path.name} imports {module}"


@pytest.mark.parametrize("package", SIBLINGS_APART)
def test_siblings_never_import_each_other(package):
    allowed = {f"u2a.{package}.{name}" for name in SIBLINGS_APART[package]}
    for path in (PACKAGE / package).glob("*.py"):
        if path.name == "__init__.py":
            continue
        for module in imports(path) - allowed:
            assert not module.startswith(f"u2a.{package}."), f"{path.name} imports {module}"


def test_every_module_is_in_the_list():
    rooms = {p.relative_to(PACKAGE).with_suffix("").parts[0] for p in MODULES}
    assert rooms <= set(ORDER)


def test_a_wrong_import_would_be_noticed(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from u2a.cli import app\n    return app\n")
    assert imports(file) == {"u2a.cli"}
