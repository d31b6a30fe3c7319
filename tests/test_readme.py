"""What the README says is so: its Python runs, its commands and flags exist, every command is in it."""

import json
import re
from pathlib import Path

import pytest

from cases import save_tiny
from u2a.cli import app
from u2a.commands import schemas
from u2a.schema import Schema

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def text():
    return README.read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def test_its_python_runs(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "my-model", "qwen")
    rows = [{"prompt": f"Q {i}", "completion": f"No {i}."} for i in range(4)]
    pairs = [{"prompt": f"P {i}", "chosen": f"Yes {i}, gladly.", "rejected": "No."} for i in range(4)]
    for name, data in (("bad", rows), ("good", rows), ("pairs", pairs)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    found = blocks(text, "python")
    assert len(found) == 2
    for code in found:
        exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "aligned" / "adapter_model.safetensors").is_file()


def test_its_flags_exist(text):
    taken = (each for each in vars(schemas).values() if isinstance(each, Schema))
    known = {spec.flag for schema in taken for spec in schema.specs.values()}
    known |= {"--config", "--no-text", "--help", "--quiet", "--json"}
    outside = {"--constraint", "--editable", "--config_file"}
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)) - outside:
        assert flag in known, f"the README names {flag}"


def test_every_command_is_in_it(text):
    for command in app.registered_commands:
        assert f"`u2a {command.name}" in text


def test_the_first_command_and_its_output_stand_within_40_lines(text):
    before, first = text.split("```console\n", 1)
    shown = first.split("```", 1)[0]
    assert shown.startswith("$ make demo\n")
    assert (before + shown).count("\n") <= 40


def test_what_it_is_comes_first_then_the_picture_and_when_not_to_use_it(text):
    marks = ("`u2a` turns", "](docs/pipeline.svg)", "$ make demo", "## When not to use it", "## On your own")
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert (README.parent / "docs" / "pipeline.svg").is_file()


def test_no_placeholder_is_left(text):
    assert "@@" not in text


INTERVAL = re.compile(r"([+−-]\d+\.\d+) \[([+−-]\d+\.\d+), ([+−-]\d+\.\d+)\]")


def intervals(text):
    """Every `+0.59 [+0.18, +1.01]`, line breaks and kinds of minus aside, to two digits behind the point."""
    plain = " ".join(text.replace("−", "-").replace("**", "").split())
    return {tuple(round(float(part) + 1e-9, 2) for part in found) for found in INTERVAL.findall(plain)}


EXPLANATION = "docs/explanation"


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        f"{EXPLANATION}/when-impact-fails.md",
        f"{EXPLANATION}/which-method.md",
        "docs/lab-notes.md",
    ],
)
def test_every_interval_stands_in_the_results(page):
    root = README.parent
    results = intervals((root / "docs" / "results.md").read_text(encoding="utf-8"))
    assert len(results) > 50
    found = intervals((root / page).read_text(encoding="utf-8"))
    assert found
    assert found - results == set()
