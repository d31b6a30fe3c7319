"""Loading: what is on disk is what is computed, for folders, adapters and GGUF files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    PreTrainedModel,
    Qwen2ForSequenceClassification,
)

import cases
from u2a.models import loading as model_loading
from u2a.models.loading import load_source, load_tokenizer
from u2a.models.policy import load_policy
from u2a.models.source import check_source
from u2a.types import UserError

IDS = torch.tensor([[5, 60, 7, 80, 9, 100]])
OPTIONS = {"trust_remote_code": False, "dtype": torch.float32}


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(IDS).logits


def test_folder_of_every_family(family: str, tmp_path: Path) -> None:
    """The same logits and tokens as before saving."""
    model, tokenizer = load_source(check_source(cases.save_tiny(tmp_path, family)), **OPTIONS)
    assert torch.equal(logits(model), logits(cases.tiny_model(family)))
    text = "Hello there,  it's naïve 🙂\n\n"
    assert tokenizer(text)["input_ids"] == cases.tiny_tokenizer(family)(text)["input_ids"]
    assert tokenizer.chat_template == cases.tiny_tokenizer(family).chat_template


def save_adapter(folder: Path, base: Path, seed: int) -> Tensor:
    """A LoRA adapter with a random B on the model in `base`; returns its logits."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    wrapped = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    )
    wrapped.save_pretrained(folder)
    return logits(wrapped.eval())


def test_adapter_is_merged_into_its_base(model_folder: Path, tmp_path: Path) -> None:
    expected = save_adapter(tmp_path / "lora", model_folder, seed=1)
    model, tokenizer = load_source(check_source(tmp_path / "lora"), **OPTIONS)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, logits(cases.tiny_model("llama")), atol=1e-2)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert tokenizer.chat_template == cases.tiny_tokenizer("llama").chat_template


def test_adapter_on_an_adapter(model_folder: Path, tmp_path: Path) -> None:
    """What u2a saves for a policy that began as an adapter can be loaded again."""
    save_adapter(tmp_path / "first", model_folder, seed=1)
    policy = load_policy(tmp_path / "first", lora_rank=2)
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    policy.save(tmp_path / "second")
    model, _ = load_source(check_source(tmp_path / "second"), **OPTIONS)
    torch.testing.assert_close(logits(model), logits(policy.model), rtol=1e-5, atol=1e-5)


def test_adapter_with_a_grown_tokenizer(model_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_tokens(["<|new|>"], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer))
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path / "lora", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "lora")
    loaded, its_tokenizer = load_source(check_source(tmp_path / "lora"), **OPTIONS)
    assert its_tokenizer("<|new|>", add_special_tokens=False)["input_ids"] == [400]
    torch.testing.assert_close(logits(loaded), logits(wrapped.eval()), rtol=1e-5, atol=1e-5)


def test_adapter_that_cannot_be_merged(model_folder: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(
        tmp_path / "prompt"
    )
    with pytest.raises(UserError, match="cannot be merged"):
        load_source(check_source(tmp_path / "prompt"), **OPTIONS)


def test_missing_weights_are_not_made_up(model_folder: Path) -> None:
    weights = load_file(model_folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the weights of 1 tensors.*layers\.1\.mlp\.up_proj"):
        load_source(check_source(model_folder), **OPTIONS)


@pytest.mark.parametrize("told", [True, False])
def test_a_reward_model_with_tied_embeddings(told: bool, tmp_path: Path) -> None:
    """Nothing is missing: the head of a language model is the embedding. Its own head was dropped."""
    tokenizer = cases.tiny_tokenizer("qwen")
    config = cases.tiny_model("qwen").config
    config.num_labels = 1
    Qwen2ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if not told:
        content = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**content, "architectures": None}))
    said = "its class is Qwen2ForSequenceClassification" if told else r"classifies \(score\.weight\)"
    with pytest.raises(UserError, match=said):
        load_policy(tmp_path)


def test_a_model_that_fills_gaps(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    tokenizer = cases.tiny_tokenizer("qwen")
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(tmp_path / "mlm")
    decoder = BertConfig(vocab_size=len(tokenizer), is_decoder=True, **size)
    BertLMHeadModel(decoder).save_pretrained(tmp_path / "lm")
    for name in ("mlm", "lm"):
        tokenizer.save_pretrained(tmp_path / name)
    with pytest.raises(UserError, match="its class is BertForMaskedLM"):
        load_policy(tmp_path / "mlm")
    assert load_policy(tmp_path / "lm").has_adapter


def test_broken_weights(model_folder: Path) -> None:
    (model_folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        load_source(check_source(model_folder), **OPTIONS)


def test_tokenizer_of_another_model(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_tokens(["one", "two"])
    tokenizer.save_pretrained(model_folder)
    with pytest.raises(UserError, match="2 tokens for which the model has no embedding"):
        load_source(check_source(model_folder), **OPTIONS)


def test_pad_token_without_an_embedding_is_not_used(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model_folder)
    _, loaded = load_source(check_source(model_folder), **OPTIONS)
    assert loaded.pad_token_id == loaded.eos_token_id


def test_unreachable_hub_model() -> None:
    with pytest.raises(UserError, match="neither a folder here nor a model the Hub gives"):
        load_source(check_source("no-such-org/no-such-model"), **OPTIONS)


# -- GGUF -----------------------------------------------------------------------------------------------

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def save_gguf(path: Path) -> None:
    """The tiny Llama as llama.cpp's converter writes it: q and k rows are permuted for its rotary layout."""
    model, tokenizer = cases.tiny_model("llama"), cases.tiny_tokenizer("llama")
    config, bpe = model.config, json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(str(tokenizer.chat_template))
    for name, tensor in model.state_dict().items():
        layer, part = "", name.removesuffix(".weight")
        if part.startswith("model.layers."):
            _, _, number, part = part.split(".", 3)
            layer = f"blk.{number}."
        values = tensor.numpy()
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(part)
        if heads:
            values = values.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(f"{layer}{GGUF_NAMES[part]}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_gguf(tmp_path / "tiny.gguf")
    capfd.readouterr()
    policy = load_policy(tmp_path / "tiny.gguf")
    assert capfd.readouterr().err == ""
    torch.testing.assert_close(logits(policy.model), logits(cases.tiny_model("llama")))
    original = cases.tiny_tokenizer("llama")
    text = "Hello <|eot_id|> there <|endoftext|>, it's naïve 🙂"
    expected = original(text, add_special_tokens=False)["input_ids"]
    assert policy.tokenizer(text, add_special_tokens=False)["input_ids"] == expected
    assert policy.tokenizer.chat_template == original.chat_template
    assert policy.model.peft_config["default"].base_model_name_or_path == str(tmp_path / "tiny.gguf")
    policy.merge().save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again), logits(cases.tiny_model("llama")))


def test_an_adapter_of_the_hub_with_a_pickle_is_not_loaded(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT would load `adapter_model.bin` where there is nothing else."""
    monkeypatch.setattr("transformers.utils.hub.has_file", lambda *_: False)
    monkeypatch.setattr(PeftModel, "from_pretrained", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=r"org/lora has no adapter_model\.safetensors; pickled weights"):
        model_loading._load_adapter("org/lora", str(model_folder), {"trust_remote_code": False})


def test_no_pickle_is_opened(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lies beside the safetensors stays closed."""
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin"):
        (model_folder / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    load_source(check_source(str(model_folder)), dtype=torch.float32, trust_remote_code=False)


def test_code_of_a_tokenizer_does_not_run(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((model_folder / "tokenizer_config.json").read_text())
    content |= {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "EvilTokenizer"}
    (model_folder / "tokenizer_config.json").write_text(json.dumps(content))
    (model_folder / "evil.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked whether to run it"))
    for load in (load_tokenizer, lambda s: load_source(s, dtype=torch.float32, trust_remote_code=False)):
        try:
            load(check_source(str(model_folder)))
        except UserError as error:
            assert "cannot be loaded" in str(error)  # noqa: PT017 - or it falls back to its own class


def test_a_tokenizer_alone_does_without_peft(tmp_path: Path) -> None:
    """`u2a check --model` waited for seconds for what only loads models."""
    values = {"model": str(cases.save_tiny(tmp_path / "model", "qwen")), "template": "auto"}
    code = (
        "import sys\n"
        "from u2a.commands import check\n"
        f"count = check._token_counter({values!r})\n"
        "assert count([{'role': 'user', 'content': 'Hi!'}], 'Go away.') > 2\n"
        "assert 'peft' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
