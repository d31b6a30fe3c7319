"""The notebook tutorial runs from first to last cell, on a tiny model, and is stored without outputs."""

from pathlib import Path

import pytest

from cases import save_tiny

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("U2A_TUTORIAL_MODEL", str(save_tiny(tmp_path / "model", "qwen")))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in code_cells(notebook) for output in cell.outputs if output
    )
    assert "96 negatives, 32 pairs, 32 held out, 32 to retain" in printed
    assert "J = -0.6931" in printed
    assert "held-out margin" in printed
    assert "adapter_model.safetensors" in str(code_cells(notebook)[-1].outputs)
