"""Options: one name everywhere, YAML under flags, and nothing accepted that is never read."""

import ast
import dataclasses
from pathlib import Path

import pytest

import u2a
from u2a.commands import schemas
from u2a.config import option
from u2a.schema import Registry, Schema
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
        ({"rate": float("nan")}, "finite"),
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


DECLARATIONS = ("config.py", "schema.py", "commands/schemas.py", "commands/options.py")


def test_every_option_is_read_somewhere():
    """Each flat name stands in the source as an attribute or a key, outside the declarations."""
    package = Path(u2a.__file__).parent
    read = set()
    for path in package.rglob("*.py"):
        if str(path.relative_to(package)) in DECLARATIONS:
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


DANGEROUS = {
    "trust_remote_code": ("true", ("ALIGN", "IMPACT", "VERIFY", "COMPARE", "EVALUATE")),
    "objective_reward_function": ("evil:run", ("ALIGN", "IMPACT", "VERIFY")),
    "allow_code": ("true", ("ALIGN", "IMPACT", "VERIFY", "EVALUATE", "COMPARE")),
    "harness_include": ("evil", ("EVALUATE",)),
    "send_to_judge": ("true", ("EVALUATE",)),
    "send_to_scorer": ("true", ("EVALUATE",)),
    "judge_key_variable": ("AWS_SECRET_ACCESS_KEY", ("EVALUATE",)),
    "reward_key_variable": ("AWS_SECRET_ACCESS_KEY", ("EVALUATE",)),
}


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_shared_file_runs_no_code_and_sends_nothing(tmp_path, name):
    value, commands = DANGEROUS[name]
    file = tmp_path / "shared.yaml"
    for command in commands:
        schema = getattr(schemas, command)
        objective = "objective: reward\n" if name.startswith("objective") else ""
        file.write_text(f"{objective}{name}: {value}\n")
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(UserError, match=f"{name} in .* counts only together with the flag {flag}"):
            schema.resolve(str(file), {})
        given = {name: True if value == "true" else value}
        assert schema.resolve(str(file), given)[name] == given[name]
        # what a run writes into its own config.yaml can be read again
        default = schema.specs[name].default
        file.write_text(f"{objective}{name}: {'false' if default is False else repr(default)}\n")
        assert schema.resolve(str(file), {})[name] == default


def test_every_option_that_names_code_or_a_secret_is_guarded():
    """A new one must be thought about: it joins the table, or the names here."""
    harmless = {"harness_tasks", "harness_limit"}
    words = ("function", "trust", "code", "include", "send_", "key_variable", "module", "plugin", "command")
    for command in ("CHECK", "SPLIT", "IMPACT", "ALIGN", "VERIFY", "EVALUATE", "COMPARE", "DEMO"):
        for name, spec in getattr(schemas, command).specs.items():
            if any(word in name for word in words) and name not in harmless:
                assert spec.flag_only, f"{name} of {command}"


@pytest.mark.parametrize(
    "content",
    ["seed: !!python/object/apply:os.system ['true']", "seed: &a [*a]", "seed: " + "[" * 100_000],
    ids=["object", "itself", "deep"],
)
def test_hostile_yaml_is_one_error(tmp_path, content):
    file = tmp_path / "shared.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=r"shared\.yaml: not readable YAML"):
        schemas.ALIGN.resolve(str(file), {})
