"""Merged models as other programs read them: names, numbers, configuration and tokenizer are the base's."""

import json

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cases import FAMILIES, save_tiny, tiny_model, tiny_tokenizer
from u2a import load_policy
from u2a.commands.align import save_merged

GGUF_KINDS = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen": gguf.MODEL_ARCH.QWEN2,
    "gemma": gguf.MODEL_ARCH.GEMMA2,
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "mistral": gguf.MODEL_ARCH.LLAMA,
}
"""What llama.cpp's converter takes the architecture for."""


def merged(base, folder, **options):
    """What `u2a align --merge` writes of an adapter that changes something; and the adapter's own logits."""
    policy = load_policy(str(base), lora_rank=2, **options)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        logits = policy.model(torch.arange(12)[None]).logits
    save_merged(policy, folder)
    return folder / "merged", logits


def config(folder, name="config.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    base = save_tiny(folder / "base", request.param)
    (base / "tokenizer.model").write_bytes(b"what llama.cpp reads and transformers leaves out")
    return request.param, base, *merged(base, folder)


def test_tensors_have_the_names_shapes_and_types_of_the_base(exported):
    _, base, out, _ = exported
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {
        n: (t.shape, t.dtype) for n, t in before.items()
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("norm" not in name and "embed" not in name and "wte" not in name for name in changed)


def test_configuration_is_the_base_s(exported):
    _, base, out, _ = exported
    for name in ("config.json", "generation_config.json"):
        assert config(out, name) == config(base, name)
    assert config(out)["architectures"] == config(base)["architectures"]
    assert "auto_map" not in config(out)


def test_tied_weights_are_written_once(exported):
    family, _, out, _ = exported
    tied = family in ("qwen", "gemma", "gpt2")
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) is not tied
    model = AutoModelForCausalLM.from_pretrained(out)
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert same is tied


def test_tokenizer_files_are_the_base_s_byte_for_byte(exported):
    _, base, out, _ = exported
    names = {path.name for path in base.iterdir()} - {"config.json", "generation_config.json"}
    assert {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"} <= names
    for name in names - {"model.safetensors"}:
        assert (out / name).read_bytes() == (base / name).read_bytes(), name


def test_it_is_the_adapter_s_model(exported):
    family, _, out, logits = exported
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(torch.arange(12)[None]).logits, logits, rtol=1e-3, atol=1e-4)
    text = "How do I bake bread?"
    assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == tiny_tokenizer(family)(text)["input_ids"]


def test_every_tensor_has_a_place_in_gguf(exported):
    """llama.cpp's converter maps names by this very table, and stops at one that is not in it."""
    family, _, out, _ = exported
    table = gguf.get_tensor_name_map(GGUF_KINDS[family], 2)
    for name in load_file(out / "model.safetensors"):
        assert table.get_name(name, try_suffixes=(".weight", ".bias")), name


def test_the_converter_s_reader_finds_the_vocabulary(exported):
    family, _, out, _ = exported
    found = gguf.SpecialVocab(out, load_merges=True)
    assert found.merges
    assert found.special_token_ids["eos"] == tiny_tokenizer(family).eos_token_id
    if family != "gpt2":
        assert found.chat_template == tiny_tokenizer(family).chat_template


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_the_number_format_is_that_of_the_run(family, tmp_path):
    base = tmp_path / "base"
    tiny_model(family, dtype=torch.bfloat16).save_pretrained(base)
    tiny_tokenizer(family).save_pretrained(base)
    out, _ = merged(base, tmp_path, dtype="bfloat16")
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert config(out)["dtype"] == "bfloat16"
    out, _ = merged(base, tmp_path / "exact", dtype="float32")
    assert config(out)["dtype"] == "float32"


def test_it_can_be_aligned_again(tmp_path):
    """gpt2 has no pad token: the one that u2a works with is not kept."""
    out, _ = merged(save_tiny(tmp_path / "base", "gpt2"), tmp_path)
    assert AutoTokenizer.from_pretrained(out).pad_token is None
    again = load_policy(str(out), lora_rank=2)
    assert again.tokenizer.pad_token_id is not None


def test_a_model_of_the_hub_is_taken_from_the_cache(tmp_path, monkeypatch):
    from u2a.models.base_files import restore_base_files

    cached = save_tiny(tmp_path / "cached", "llama")
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "tokenizer.json").write_text("transformers' own")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda _, name: str(cached / name) if (cached / name).is_file() else None,
    )
    restore_base_files(saved, "org/model")
    assert (saved / "tokenizer.json").read_bytes() == (cached / "tokenizer.json").read_bytes()
    assert not (saved / "config.json").exists()
    before = sorted(path.name for path in saved.iterdir())
    monkeypatch.undo()
    restore_base_files(saved, "not a/name of/the hub")
    assert sorted(path.name for path in saved.iterdir()) == before
