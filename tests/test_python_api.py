"""The names that `u2a` exports: few, typed, documented, and each with an example that runs."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from datasets import Dataset

import u2a
import u2a.config
from u2a.data.load import load_negatives, load_preferences
from u2a.types import UserError

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
EXAMPLE_FOLDER = PAGE.parents[1] / "examples"
EXAMPLES = (
    "score_impact", "align", "verify", "evaluate", "UnlearnTrainer", "U2AConfig", "prepare",
    "load_policy", "load_negatives", "load_preferences", "load_retain", "GradientAscent", "NPO", "SimNPO",
    "Preference", "MeanLogProb", "Reward", "weighted_negatives", "drawn_by_weight",
)  # fmt: skip


def examples_of(thing, name):
    return [
        test for test in doctest.DocTestFinder(recurse=False).find(thing, name, globs={}) if test.examples
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_each_name_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = examples_of(getattr(u2a, name), name)
    assert len(found) == 1
    printed = []
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found[0], out=printed.append).failed
    assert failed == 0, "".join(printed)
    assert list(tmp_path.iterdir()) == []  # an example leaves nothing behind where it is run


def test_a_wrong_example_would_be_noticed():
    def wrong():
        """
        >>> 1 + 1
        3
        """

    (found,) = examples_of(wrong, "wrong")
    assert doctest.DocTestRunner(verbose=False).run(found, out=lambda _: None).failed == 1


def test_every_name_is_documented_and_typed():
    page = PAGE.read_text(encoding="utf-8")
    for name in u2a.__all__:
        thing = getattr(u2a, name)
        assert inspect.getdoc(thing), f"{name} has no docstring"
        assert f"`{name}`" in page, f"docs/python.md does not name {name}"
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            assert signature.return_annotation is not inspect.Signature.empty
            assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    assert (Path(u2a.__file__).parent / "py.typed").is_file()


def page_python():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    return code


def test_the_page_imports_public_names_alone():
    """`tests/test_docs.py` runs it."""
    imported = {
        alias.name
        for node in ast.walk(ast.parse(page_python()))
        if isinstance(node, ast.ImportFrom) and node.module == "u2a"
        for alias in node.names
    }
    assert imported
    assert imported <= set(u2a.__all__)


@pytest.mark.parametrize("path", sorted(EXAMPLE_FOLDER.rglob("*.py")), ids=lambda p: p.name)
def test_the_examples_import_public_names_alone(path):
    """What one copies from them is what semantic versioning is about."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "u2a":
            assert node.module == "u2a", f"{path.name} imports {node.module}"
            assert {alias.name for alias in node.names} <= set(u2a.__all__)


def options_and_results(thing):
    """Names of u2a's classes in the annotations of a function."""
    found = set()
    for annotation in inspect.get_annotations(thing).values():
        found |= {word for word in re.findall(r"[A-Z]\w+", str(annotation)) if hasattr(u2a.config, word)}
    return found


def test_the_options_of_public_functions_are_public():
    named = set().union(*(options_and_results(getattr(u2a, name)) for name in ("align", "verify")))
    assert {"UnlearnOptions", "WeightOptions", "OuterOptions"} <= named
    assert named - {"Any", "Sequence"} <= set(u2a.__all__)


def test_importing_a_package_of_the_same_room_changes_no_name():
    """No exported name is that of a module or package, which importing it would put in the name's place."""
    rooms = {path.stem for path in Path(u2a.__file__).parent.iterdir()}
    assert not rooms & set(u2a.__all__)
    for room in ("verification", "evaluation"):
        importlib.import_module(f"u2a.{room}")
    assert inspect.isfunction(u2a.verify)
    assert inspect.isfunction(u2a.evaluate)


def test_import_is_lazy():
    code = "import u2a, sys; u2a.NPO; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_may_be_given_from_python():
    rows = [
        {"prompt": "Hello!", "completion": "Go away."},
        {"prompt": "Tea?", "completion": "No.", "id": "x"},
    ]
    for given in (rows, tuple(rows), Dataset.from_list(rows)):
        found = load_negatives(given)
        assert found["response"][:] == ["Go away.", "No."]
        assert found["prompt"][1] == [{"role": "user", "content": "Tea?"}]
    uneven = [{"text": "Go away."}, {**rows[0], "weight": 3.0}]
    found = load_negatives(uneven)
    assert found["response"][:] == ["Go away."] * 2
    assert found["weight"][:] == [1.0, 3.0]
    with pytest.raises(UserError, match="row 2: the row has a `label`, rows before it have none"):
        load_negatives([rows[0], {**rows[0], "label": True}])  # a good answer, not to be unlearned
    mixed = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": 7}]
    with pytest.raises(UserError, match="the rows given: the column 'rejected' must hold one type"):
        load_preferences(mixed)
    with pytest.raises(UserError, match="the rows given, row 2: it is str"):
        load_negatives([rows[0], "text"])
    with pytest.raises(UserError, match="the rows given: it is empty"):
        load_negatives([])
    with pytest.raises(UserError, match="the rows given, row 1"):
        load_negatives([{"question": "SECRET"}])


def test_nothing_deprecated_is_called_in_our_name():
    """A user of the library would see it at every load and every run; the commands hide it."""
    model = u2a.tiny_model()
    bad = [{"prompt": "Hi?", "completion": "Go away."}, {"prompt": "Tea?", "completion": "No."}]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        problem = u2a.prepare(
            u2a.load_policy(model, lora_rank=2),
            negatives=load_negatives(bad),
            preferences=load_preferences([{"prompt": "Tea?", "chosen": "Yes.", "rejected": "No."}]),
        )
        assert u2a.align(problem, outer=u2a.OuterOptions(outer_steps=1)).points
