"""The model that a trainer is given, by name or in hand, as it will be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from u2a.logprobs import unwrapped
from u2a.model_loading import load_source
from u2a.model_source import check_source

if TYPE_CHECKING:
    from peft import PeftConfig


def trained_model(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, peft_config: PeftConfig | None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model, loaded in float32 if it is a name, in a new adapter if it gets one; and its tokenizer.

    Raises:
        UserError: there is no such model.
    """
    if isinstance(model, str):
        model, found = load_source(check_source(model), dtype=torch.float32, trust_remote_code=False)
        tokenizer = tokenizer or found
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(unwrapped(model).config.name_or_path)
    if peft_config is not None:
        from peft import get_peft_model

        peft_config.task_type = peft_config.task_type or "CAUSAL_LM"  # what AutoPeftModel looks for
        model = get_peft_model(model, peft_config)
    return model, tokenizer
