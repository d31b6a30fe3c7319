"""What shapes the cells of a comparison."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from u2a.commands.comparison_plan import model_mark


def test_a_model_is_known_by_its_weights_not_by_where_it_stands(tmp_path, monkeypatch):
    def folder(name: str, bias: float) -> str:
        (tmp_path / name).mkdir()
        save_file({"bias": torch.tensor([bias])}, tmp_path / name / "model.safetensors")
        return str(tmp_path / name)

    first = model_mark(folder("here", 0.0))
    assert model_mark(folder("elsewhere", 0.0)) == first
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_mark("~/here") == first
    assert model_mark(folder("other", 1.0)) != first


def test_a_file_is_known_by_what_it_holds_and_a_run_folder_by_its_adapter(tmp_path):
    for name, content in (("a.gguf", b"one"), ("b.gguf", b"one"), ("c.gguf", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (model_mark(str(tmp_path / f"{name}.gguf")) for name in "abc")
    assert a == b != c
    for name, bias in (("run", 0.0), ("again", 0.0), ("other", 1.0)):
        (tmp_path / name / "adapter").mkdir(parents=True)
        file = tmp_path / name / "adapter" / "adapter_model.safetensors"
        save_file({"bias": torch.tensor([bias])}, file)
    run, again, other = (model_mark(str(tmp_path / name)) for name in ("run", "again", "other"))
    assert run == again != other


def test_a_model_of_the_hub_is_known_by_its_name():
    assert not Path("someone/reward").exists()
    assert model_mark("someone/reward") == "someone/reward"
