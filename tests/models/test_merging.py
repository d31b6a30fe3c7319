"""Merging: the model computes the same before and after it, also where the adapter is on tied embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

import cases
from u2a.models.loading import load_source
from u2a.models.merging import merged, quiet_peft
from u2a.models.policy import load_policy
from u2a.models.source import check_source

IDS = torch.tensor([[5, 60, 7, 80, 9, 100]])
TIED = ("qwen", "gemma", "gpt2")


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(IDS).logits


def moved(model: nn.Module) -> Tensor:
    """Logits after everything that is trained was changed."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return logits(model)


ADAPTERS: dict[str, Any] = {
    "head": lambda ends: LoraConfig(target_modules=ends[1:]),
    "embedding": lambda ends: LoraConfig(target_modules=ends[:1]),
    "both": lambda ends: LoraConfig(target_modules=ends),
    "both alike": lambda ends: LoraConfig(target_modules=ends, ensure_weight_tying=True),
    "another kind": lambda ends: LoHaConfig(target_modules=ends[1:]),
    "whole head": lambda ends: LoraConfig(target_modules="all-linear", modules_to_save=ends[1:]),
    "tokens": lambda _: LoraConfig(target_modules="all-linear", trainable_token_indices=[7, 60]),
}
"""From the names of embedding and head."""


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_folder_is_the_model_that_was_saved(family: str, kind: str, tmp_path: Path) -> None:
    if kind == "both alike" and family not in ("qwen", "gemma"):
        pytest.skip("PEFT ties nothing here, and warns")
    base = AutoModelForCausalLM.from_pretrained(cases.save_tiny(tmp_path / "base", family))
    original = logits(base)
    ends = ["wte" if family == "gpt2" else "embed_tokens", "lm_head"]
    with quiet_peft():
        wrapped: Any = get_peft_model(base, ADAPTERS[kind](ends))
    expected = moved(wrapped)
    assert not torch.allclose(expected, original, atol=0.1)
    wrapped.save_pretrained(tmp_path / "sft", save_embedding_layers=False)
    options = {"trust_remote_code": False, "dtype": torch.float32}
    loaded, _ = load_source(check_source(tmp_path / "sft"), **options)
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
    loaded.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)
    tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert tied == again.config.tie_word_embeddings == (family in TIED and kind == "tokens")


def test_a_policy_with_the_head_as_a_target(family: str, tmp_path: Path) -> None:
    """`--lora-targets …,lm_head --merge`, and the adapter of a run that began at such a model."""
    policy = load_policy(
        cases.save_tiny(tmp_path / "base", family),
        lora_rank=2,
        lora_targets=("c_attn" if family == "gpt2" else "q_proj") + ",lm_head",
    )
    expected = moved(policy.model)
    policy.save(tmp_path / "adapter")
    policy.merge()
    torch.testing.assert_close(logits(policy.model), expected, rtol=1e-4, atol=1e-4)
    policy.save(tmp_path / "merged")
    for folder in ("adapter", "merged"):
        began = load_policy(tmp_path / folder, lora_rank=2)
        torch.testing.assert_close(logits(began.model), expected, rtol=1e-4, atol=1e-4)
    further = moved(began.model)
    began.save(tmp_path / "second")
    again = load_policy(tmp_path / "second", lora_rank=0)
    torch.testing.assert_close(logits(again.model), further, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", TIED)
def test_embeddings_without_an_adapter_stay_tied(family: str) -> None:
    policy = cases.tiny_policy(family)
    model: Any = policy.merge()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.tie_word_embeddings


def test_biases_that_are_tied_beside_the_weight_are_saved_too(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    base = BertLMHeadModel(BertConfig(vocab_size=400, is_decoder=True, **size))
    with quiet_peft():
        wrapped: Any = get_peft_model(base, LoraConfig(target_modules=["cls.predictions.decoder"]))
    expected = moved(wrapped)
    model = merged(wrapped)
    model.save_pretrained(tmp_path)
    again, report = BertLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    for each in (model, again):
        torch.testing.assert_close(logits(each), expected, rtol=1e-4, atol=1e-4)
