"""What shapes the cells of a comparison."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from u2a.commands.comparison_plan import reward_model_mark


def test_a_reward_model_is_known_by_its_weights_not_by_where_it_stands(tmp_path, monkeypatch):
    def folder(name: str, bias: float) -> str:
        (tmp_path / name).mkdir()
        save_file({"bias": torch.tensor([bias])}, tmp_path / name / "model.safetensors")
        return str(tmp_path / name)

    first = reward_model_mark(folder("here", 0.0))
    assert reward_model_mark(folder("elsewhere", 0.0)) == first
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reward_model_mark("~/here") == first
    assert reward_model_mark(folder("other", 1.0)) != first


def test_a_reward_model_of_the_hub_is_known_by_its_name():
    assert not Path("someone/reward").exists()
    assert reward_model_mark("someone/reward") == "someone/reward"
