"""A random model of some 20,000 weights: for examples, and for tests of parts of your own. No network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from u2a.data.scratch import new_folder
from u2a.models.loading import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_END, _START = "<|im_end|>", "<|im_start|>"
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_model(folder: Path | str | None = None, *, seed: int = 0) -> Path:
    """Writes a random Llama with a tokenizer of bytes and ChatML's template; the same seed, the same weights.

    Args:
        folder: where to; default a temporary folder that goes with the process.

    Returns:
        the folder, a source for `load_policy` and for `AutoModelForCausalLM.from_pretrained`.

    Example:
        >>> from u2a import load_policy, tiny_model
        >>> policy = load_policy(tiny_model(), lora_rank=2)
        >>> policy.model.config.model_type
        'llama'
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    target = Path(folder) if folder is not None else new_folder()
    tokenizer = _byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,  # large enough for log-probs to vary from token to token
    )
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the two of the template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([_END, _START, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        eos_token=_END,
        pad_token=_END,
        extra_special_tokens=[_START],
    )
    fast.chat_template = _TEMPLATE
    return fast
