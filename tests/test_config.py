"""Options: one name everywhere, YAML under flags, and nothing accepted that is never read."""

import ast
import dataclasses
from pathlib import Path

import pytest

import u2a
from u2a.commands import schemas
from u2a.config import Registry, Schema, option
from u2a.types import UserError


@dataclasses.dataclass(frozen=True)
class Part:
    kind: str = option("a", "Kind.")
    size: int = option(3, "Size.", least=1)
    rate: float = option(1e-3, "Rate.", above=0)
    mode: str = option("x", "Mode.", ("x", "y"))
    on: bool = option(False, "On.")


@dataclasses.dataclass(frozen=True)
class A:
    beta: float = dataclasses.field(default=0.1, metadata={"help": "β."})


@dataclasses.dataclass(frozen=True)
class B:
    gamma: float = dataclasses.field(default=0.5, metadata={"help": "γ."})


SCHEMA = Schema((Part,), (Registry("kind", {"a": A, "b": B}, aliases={"alpha": "a"}),))


def test_defaults_yaml_and_flags_in_that_order(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("size: 5\nrate: 1e-2\n")
    values = SCHEMA.resolve(str(file), {"size": 7, "rate": None, "on": None})
    assert values == {"kind": "a", "size": 7, "rate": 0.01, "mode": "x", "on": False, "beta": 0.1}


def test_options_of_what_was_not_chosen_are_left_out_and_refused():
    assert "gamma" in SCHEMA.resolve(None, {"kind": "b"})
    assert "beta" not in SCHEMA.resolve(None, {"kind": "b"})
    assert SCHEMA.chosen_options("kind", SCHEMA.resolve(None, {"kind": "alpha"})) == {"beta": 0.1}
    with pytest.raises(UserError, match="--gamma means nothing for --kind a"):
        SCHEMA.resolve(None, {"gamma": 0.2})


@pytest.mark.parametrize(
    "given, words",
    [
        ({"size": 0}, "at least 1"),
        ({"size": 2.5}, "whole number"),
        ({"size": True}, "whole number"),
        ({"rate": 0.0}, "above 0"),
        ({"rate": float("nan")}, "above 0"),
        ({"rate": float("inf")}, "finite"),
        ({"mode": "z"}, "one of x, y"),
        ({"kind": "c"}, "unknown"),
        ({"on": "yes"}, "true or false"),
    ],
)
def test_bad_values_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        SCHEMA.resolve(None, given)


def test_unknown_keys_are_refused_with_the_nearest_name(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("sise: 5\n")
    with pytest.raises(UserError, match=r"unknown key 'sise' \(did you mean size\?\)"):
        SCHEMA.resolve(str(file), {})


def test_two_options_of_one_name_are_a_mistake_of_ours():
    @dataclasses.dataclass(frozen=True)
    class Other:
        size: int = option(1, "Another size.")

    with pytest.raises(ValueError, match="two options are called size"):
        Schema((Part, Other))


@pytest.mark.parametrize(
    "schema", [schemas.ALIGN, schemas.IMPACT, schemas.CHECK, schemas.SPLIT, schemas.DEMO]
)
def test_defaults_are_valid(schema):
    defaults = schema.resolve(None, {})
    assert schema.resolve(None, {k: v for k, v in defaults.items() if v != ""}) == defaults


def test_every_option_is_read_somewhere():
    """Each flat name stands in the source as an attribute or a key, outside the declarations."""
    package = Path(u2a.__file__).parent
    read = set()
    for path in package.rglob("*.py"):
        if path.name in ("config.py", "schemas.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
    for name in {**schemas.ALIGN.specs, **schemas.VERIFY.specs}:
        plain = name.removeprefix("objective_").removeprefix("curvature_")
        assert name in read or plain in read, f"--{name} is accepted and never read"


def test_the_example_is_valid():
    example = Path(__file__).parent.parent / "examples" / "align.yaml"
    values = schemas.ALIGN.resolve(str(example), {})
    assert values["learning_rate"] == 1e-4
    assert values["select"] == "50%"


@pytest.mark.parametrize("name", ["select", "subset_share"])
def test_a_bare_number_in_yaml_is_a_count(tmp_path, name):
    config = tmp_path / "run.yaml"
    config.write_text(f"{name}: 15\n")
    schema = schemas.ALIGN if name == "select" else schemas.VERIFY
    assert schema.resolve(str(config), {})[name] == "15"


def test_keys_aside_come_from_yaml_alone_as_they_are(tmp_path):
    schema = Schema((Part,), aside=("methods",))
    path = tmp_path / "run.yaml"
    path.write_text("methods: [a, {b: 1}]\n")
    assert schema.resolve(str(path), {})["methods"] == ["a", {"b": 1}]
    assert schema.resolve(None, {})["methods"] is None
    assert "methods" not in schema.specs
