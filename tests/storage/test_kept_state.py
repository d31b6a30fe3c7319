"""Kept state: dtypes and bits come back, and a changed byte is noticed."""

import pytest
import torch

from u2a.storage.kept_state import Damaged, read_state, write_state


def test_tensors_and_floats_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {
        "half": torch.tensor([0.1, -3.0], dtype=torch.bfloat16),
        "double": torch.tensor([[0.1], [1e-300]], dtype=torch.float64),
        "step": torch.tensor(3.0),
        "none": torch.zeros(0),
    }
    tensors["same memory"] = tensors["double"]
    write_state(path, tensors, {"rate": 0.1 + 0.2, "tiny": 5e-324, "name": "é"})
    found, content = read_state(path)
    assert content == {"rate": 0.1 + 0.2, "tiny": 5e-324, "name": "é"}
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone", "foreign"])
def test_damage_is_noticed(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    write_state(path, {"x": torch.arange(100.0)}, {"step": 3})
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    {
        "flipped": lambda: path.write_bytes(content),
        "cut": lambda: path.write_bytes(content[:-7]),
        "empty": lambda: path.write_bytes(b""),
        "gone": path.unlink,
        "foreign": lambda: path.write_text("not this"),
    }[damage]()
    with pytest.raises(Damaged, match=r"x\.safetensors"):
        read_state(path)
