"""Every script of examples/ runs from its command line, offline, on a tiny model, and overwrites nothing."""

import runpy
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from cases import save_tiny
from u2a.cli import app
from u2a.commands import schemas
from u2a.commands.comparison_plan import make_plan

EXAMPLES = Path(__file__).parent.parent / "examples"
ROWS = Path(schemas.__file__).parents[1] / "demo_data"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model in place of the demo's."""
    return str(save_tiny(tmp_path_factory.mktemp("examples") / "model", "qwen"))


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a script as `python examples/NAME …` would; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def of(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return of


def test_score_impact(run, model, tmp_path):
    output = tmp_path / "impact.parquet"
    printed = run("score_impact.py", "--model", model, "--output", output)
    assert "are worth unlearning" in printed
    table = pq.read_table(output)
    assert table.num_rows == 96
    assert f"{sum(a > 0 for a in table['impact'].to_pylist())} of 96 are worth unlearning." in printed
    with pytest.raises(SystemExit):
        run("score_impact.py", "--model", model, "--output", output)


def test_align_in_python(run, model, tmp_path):
    printed = run("align_in_python.py", "--model", model, "--select", "10", "--output", tmp_path / "aligned")
    assert "held-out margin" in printed
    weighted = int(printed.split(" negatives have a weight")[0].splitlines()[-1])
    assert 0 < weighted <= 10
    assert (tmp_path / "aligned" / "adapter_model.safetensors").is_file()


def test_train_with_weights(run, model, tmp_path):
    options = {
        "--model": model,
        "--negatives": ROWS / "negatives.jsonl",
        "--select": "12",
        "--max-length": 128,
    }
    options |= {"--preferences": ROWS / "validation.jsonl", "--output": tmp_path / "run", "--max-steps": 1}
    given = [str(word) for pair in options.items() for word in pair]
    assert CliRunner().invoke(app, ["align", *given, "--outer-steps", "1"]).exit_code in (0, 1)
    selected = sum(pq.read_table(tmp_path / "run" / "weights.parquet")["selected"].to_pylist())
    printed = run("train_with_weights.py", tmp_path / "run", "--steps", "2", "--output", tmp_path / "out")
    assert f"{selected} of 96 negatives have a weight; 2 steps" in printed
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_every_script_is_in_a_test():
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    scripts = [path.name for path in EXAMPLES.glob("*.py")]
    assert "score_impact.py" in scripts
    assert [name for name in scripts if f'"{name}"' not in tests] == []


def test_the_demos_comparison_runs_as_printed_after_the_demo(monkeypatch):
    """From the repository: the rows are there, and the model is what `u2a demo` makes by default."""
    monkeypatch.chdir(EXAMPLES.parent)
    path = "examples/compare-demo.yaml"
    values = schemas.COMPARE.resolve(path, {})
    assert values["model"] == f"{schemas.DEMO.resolve(None, {})['output']}/original"
    for role in ("negatives", "preferences", "test", "retain"):
        assert Path(values[role]).is_file(), role
    command = f"u2a compare --config {path} --output runs/compare-demo"
    for page in ("README.md", "docs/comparison.md", path):
        assert command in " ".join(Path(page).read_text(encoding="utf-8").split()), page


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_a_configuration_is_accepted(path):
    """And its first line is the command that takes it."""
    command = path.read_text(encoding="utf-8").split("# u2a ", 1)[1].split()[0]
    values = getattr(schemas, command.upper()).resolve(str(path), {})
    assert values["model"]
    if "methods" in yaml.safe_load(path.read_text(encoding="utf-8")):
        make_plan(values)
