"""Tiny models, tokenizers and policies of five families, built in memory: seeded, offline, a few ms each.

The tokenizers have about 400 tokens with every byte among them, the family's real special tokens and its real
chat template (`gpt2` has none). The models have two layers of width 32 and weights large enough for
log-probs to vary from token to token.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

if TYPE_CHECKING:
    from u2a.models.policy import Policy

FAMILIES = ("llama", "qwen", "gemma", "gpt2", "mistral")

VOCABULARY = 400

TEXT = [
    "How do I bake bread at home? Mix flour, water, salt and yeast, and let the dough rest for an hour.",
    "Please tell me how to open a locked door. I will not help with that, but a locksmith can.",
    "What is the capital of France? The capital of France is Paris.",
    "You are a helpful assistant. Answer the question in one or two sentences.",
    "user assistant model system User: Assistant: System: [INST] [/INST]",
    "The weather is nice today, isn't it? Yes, it is! We could go for a walk in the park.\n\nThank you.",
    "Water boils at 100 degrees; 2 + 2 = 4. Don't be rude, be kind, and never share a password.",
    "I think that this is a bad answer. This is a good answer. Some people like tea, others like coffee.",
]

_LLAMA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

_QWEN = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)

_MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}"
    "{{ bos_token }}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{% if loop.first and system_message is defined %}"
    "{{ ' [INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)

_SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|finetune_right_pad_id|>",
        "more": ["<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
        "chat_template": _LLAMA,
    },
    "qwen": {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "more": ["<|im_start|>"],
        "chat_template": _QWEN,
    },
    "gemma": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "more": ["<start_of_turn>", "<end_of_turn>"],
        "chat_template": _GEMMA,
    },
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "more": []},
    "mistral": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "more": [],
        "chat_template": _MISTRAL,
    },
}


def _special_tokens(family: str) -> list[str]:
    """Special tokens in id order, each once."""
    kinds = {k: v for k, v in _SPECIAL[family].items() if k.endswith("_token")}
    return list(dict.fromkeys([*kinds.values(), *_SPECIAL[family]["more"]]))


def _byte_level(family: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if family == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        words = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        special_tokens=_special_tokens(family),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def _metaspace(family: str) -> Tokenizer:
    """As sentencepiece's BPE is converted: spaces as ▁, unknown characters as bytes."""
    specials = _special_tokens(family)
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+|▁"), behavior="isolated")
    room = VOCABULARY - len(specials) - 256
    learned.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=room, show_progress=False))
    bpe = json.loads(learned.to_str())["model"]
    pieces = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    order = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(order)},
            merges=[tuple(merge) for merge in bpe["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if family == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(back)
    tokenizer.add_special_tokens(specials)
    return tokenizer


@cache
def _tokenizer_json(family: str) -> str:
    tokenizer = _metaspace(family) if family in ("gemma", "mistral") else _byte_level(family)
    bos = _SPECIAL[family].get("bos_token")
    if bos and family != "gpt2":
        ids = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=ids
        )
    return tokenizer.to_str()


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A new tokenizer of that family: about 400 tokens, all bytes, real special tokens and chat template.

    `gpt2` has no chat template and no pad token, `mistral` no pad token, `qwen` no BOS.
    """
    special = {k: v for k, v in _SPECIAL[family].items() if k.endswith("_token")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json(family)),
        clean_up_tokenization_spaces=False,
        extra_special_tokens=_SPECIAL[family]["more"],
        **special,
    )
    tokenizer.chat_template = _SPECIAL[family].get("chat_template")
    return tokenizer


def tiny_model(
    family: str,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> PreTrainedModel:
    """A new random model of that family in eval mode, without dropout; same seed = same weights.

    The token embeddings have one row per token of `tokenizer` (default `tiny_tokenizer(family)`).
    """
    tokenizer = tokenizer or tiny_tokenizer(family)
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    size = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel
        if family == "llama":
            model = LlamaForCausalLM(LlamaConfig(**ids, **size))
        elif family == "qwen":
            model = Qwen2ForCausalLM(Qwen2Config(**ids, **size, tie_word_embeddings=True))
        elif family == "gemma":
            # Only eager attention caps its logits.
            model = Gemma2ForCausalLM(
                Gemma2Config(**ids, **size, head_dim=8, query_pre_attn_scalar=8, attn_implementation="eager")
            )
        elif family == "gpt2":
            dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            model = GPT2LMHeadModel(
                GPT2Config(**ids, **dropout, n_embd=32, n_layer=2, n_head=4, n_positions=512)
            )
        elif family == "mistral":
            model = MistralForCausalLM(MistralConfig(**ids, **size, sliding_window=None))
        else:
            raise ValueError(f"{family}: take one of {FAMILIES}")
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.3)
            else:
                # Also biases, which start at zero, and norms, at one: a test must notice one that is lost.
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def tiny_policy(
    family: str,
    lora_rank: int = 4,
    random_b: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Policy:
    """A policy around `tiny_model`: LoRA on all linear layers (rank 0 = full fine-tuning), pad token set.

    With `random_b`, B is not zero: φ₀ differs from the reference, and ∇_A is not zero either.
    """
    from u2a.models.policy import Policy, add_adapter, ensure_pad_token

    tokenizer = tiny_tokenizer(family)
    model: Any = tiny_model(family, dtype=dtype, seed=seed, tokenizer=tokenizer)
    ensure_pad_token(tokenizer, model)
    if lora_rank:
        model = add_adapter(model, rank=lora_rank, seed=seed)
    policy = Policy(model=model, tokenizer=tokenizer, has_adapter=lora_rank > 0, source=f"tiny-{family}")
    if lora_rank and random_b:
        generator = torch.Generator().manual_seed(seed + 1)
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                noise = 0.05 * torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(noise.to(parameter.dtype))
    return policy


def save_tiny(folder: Path | str, family: str, seed: int = 0) -> Path:
    """Writes `tiny_model` and `tiny_tokenizer` as a safetensors model folder; returns the folder."""
    tokenizer = tiny_tokenizer(family)
    tiny_model(family, seed=seed, tokenizer=tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    """Writes one row a line; returns the path as a flag takes it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
