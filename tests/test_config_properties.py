"""Options, whatever YAML and flags hold: values of their types, or a `UserError`."""

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from u2a.baselines import METHODS
from u2a.commands import schemas
from u2a.compare.plan import parse_methods
from u2a.types import UserError, shown

SCHEMAS = {
    name: getattr(schemas, name)
    for name in ("CHECK", "SPLIT", "IMPACT", "ALIGN", "VERIFY", "EVALUATE", "COMPARE", "DEMO")
}
SIMPLE = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["npo", "ga", "30%", "1e-4", "auto", "nll", "ggn", "none", "u2a", "dpo"])
)
VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SIMPLE, inner, max_size=2),
    max_leaves=4,
)


def outcome(work):
    """What `work` gives and no message, or nothing and the message of its `UserError`."""
    try:
        return work(), ""
    except UserError as fault:
        return None, str(fault)


def resolved(schema, text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return schema.resolve(str(path), {})


@pytest.mark.parametrize("name", SCHEMAS)
@settings(max_examples=20)
@given(data=st.data())
def test_any_flags_give_values_of_their_types_or_a_user_error(name, data):
    schema = SCHEMAS[name]
    given_flags = data.draw(st.dictionaries(st.sampled_from(list(schema.specs)), VALUES, max_size=3))
    values, message = outcome(lambda: schema.resolve(None, given_flags))
    if values is None:
        assert 0 < len(message) < 2000
        return
    assert all(type(values[key]) is spec.type for key, spec in schema.specs.items() if key in values)
    again = {key: value for key, value in values.items() if key not in schema.aside}
    assert schema.resolve(None, again) == values


@settings(max_examples=25)
@given(content=st.dictionaries(st.sampled_from([*schemas.COMPARE.specs, "methods"]), VALUES, max_size=3))
def test_what_yaml_holds_comes_back_or_is_refused(content):
    """A run's config.yaml replays it: resolved values, written and read, are the same values."""
    values, message = outcome(lambda: resolved(schemas.COMPARE, yaml.safe_dump(content)))
    if values is None:
        assert 0 < len(message) < 2000
        return
    values.pop("methods")
    assert resolved(schemas.COMPARE, yaml.safe_dump(values)) == {**values, "methods": None}


@settings(max_examples=25)
@given(text=st.text(max_size=60) | st.text("{}[]:&*!<>|'\"-? \n0x1ae.~", max_size=40))
def test_any_text_is_a_configuration_or_refused(text):
    values, message = outcome(lambda: resolved(schemas.ALIGN, text))
    assert "run.yaml" in message if values is None else values == schemas.ALIGN.resolve(None, {})


@settings(max_examples=60)
@given(data=st.data())
def test_any_methods_are_entries_or_refused(data):
    kind = data.draw(st.sampled_from(list(METHODS)))
    names = [*METHODS[kind].__dataclass_fields__, "name", "loss", "other"]
    options = data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=2))
    entries, message = outcome(lambda: parse_methods([{**options, "method": kind}], "npo"))
    if entries is None:
        assert 0 < len(message) < 2000
    else:
        assert entries[0].kind == "original"
        assert len({entry.name for entry in entries}) == len(entries)


@given(VALUES)
def test_whatever_is_shown_is_short(value):
    assert len(shown(value)) < 2000


def bomb(line):
    """Nine references to the line before, on each of nine lines."""
    return "a0: &a0 {x: 1}\n" + "".join(line.format(i, i + 1, ",".join([f"*a{i}"] * 9)) for i in range(9))


HOSTILE = {
    # found by benchmarks/fuzz, or by thinking of what fuzzing would need long for
    "a date that is none": ("seed: 2001-99-99", "a value in it"),
    "a tag that does not fit": ("seed: !!bool x", "a value in it"),
    "an empty number": ("seed: !!int ''", "a value in it"),
    "nested": ("seed: " + "[" * 600, "nested too deeply"),
    "a number of too many digits": ("seed: 0x" + "f" * 5000, "at most"),
    "too large for a fraction": ("kl_budget: 1" + "0" * 400, "kl_budget must be a number"),
    "a count of too many digits": ("select: 0x" + "f" * 5000, "select must be text"),
    # from PyYAML 6.0.4 on each key is merged once, and what is left is a key of nobody's
    "merged without end": (bomb("a{1}: &a{1} {{<<: [{2}]}}\n"), "too many keys|unknown key"),
    "printed without end": (
        bomb("a{1}: &a{1} [{2}]\n").replace("a0: ", "loss: ", 1).replace("a9: ", "seed: "),
        "more than 10,000 values",
    ),
    "NUL": ('output: "a\\0b"', "holds a character"),
    "half a surrogate pair": ('output: "\\ud800"', "holds a character"),
    "a key that is no name": ("? [a]\n: 1", "not readable YAML"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_refused(case):
    text, message = HOSTILE[case]
    with pytest.raises(UserError, match=message) as found:
        resolved(schemas.ALIGN, text)
    assert len(str(found.value)) < 2000


@pytest.mark.parametrize(
    "given_method, message",
    [
        ({"method": "u2a", "eta": 16**5000}, "eta of u2a is a number of too many digits"),
        ({"method": "u2a", "select": 16**5000}, "select of u2a is a number of too many digits"),
        ({"method": "u2a", "eta": 10**400}, "eta of u2a is 1000"),
        ({"method": "u2a", "name": 16**5000}, "the name a number of too many digits"),
        ({"method": "u2a", "loss": 3}, "the loss of u2a is 3"),
        ({"method": "u2a", 16**5000: 1}, "no option a number of too many digits"),
        ({"method": 16**5000}, "neither a name nor a mapping"),
    ],
)
def test_hostile_methods_are_refused(given_method, message):
    with pytest.raises(UserError, match=message):
        parse_methods([given_method], "npo")
