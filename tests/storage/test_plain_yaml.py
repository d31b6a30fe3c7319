"""YAML of others: no objects, no code, no bombs."""

import time

import pytest

from u2a.storage.plain_yaml import MOST_VALUES, plain_values

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


def test_plain_values():
    assert plain_values("a: [1, x, 1.5, true]\nb: {c: }") == {"a": [1, "x", 1.5, True], "b": {"c": None}}
    assert plain_values("a: &x [1]\nb: *x") == {"a": [1], "b": [1]}


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: !!python/object/apply:os.system ['true']", "python/object"),
        ("a: !!python/name:os.system", "python/name"),
        (LAUGHS, "more than 10,000 values"),
        ("a: &a [*a]", "more than 10,000 values"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("[" + "1," * (MOST_VALUES + 1) + "]", "more than 10,000 values"),
        ("a: [", "expected"),
    ],
    ids=["object", "name", "laughs", "itself", "deep", "long", "broken"],
)
def test_what_is_refused(text, words):
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=words):
        plain_values(text)
    assert time.perf_counter() - begin < 20
