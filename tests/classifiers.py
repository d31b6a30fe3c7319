"""A tiny text classifier with probabilities set by hand."""

from __future__ import annotations

import math

import numpy as np
import torch

import cases

LABELS = ("safe", "hate", "violence")
CALM, LOUD = [0.8, 0.1, 0.1], [0.25, 0.25, 0.5]
"""Probabilities of the labels for a text that ends in a full stop, and in an exclamation mark."""


def save_classifier(folder, logits=(np.log(CALM), np.log(LOUD)), labels=LABELS, *, pad=True, **config):
    """A Llama whose layers add nothing, so that the last token alone decides: `!` gives the second logits.

    Every token's embedding is the first axis, that of `!` the second; the norm makes them √32 long.
    """
    from transformers import LlamaForSequenceClassification

    tokenizer = cases.tiny_tokenizer("llama")
    if not pad:
        tokenizer.pad_token = None
    how = cases.tiny_model("llama", tokenizer=tokenizer).config
    how.update({"id2label": dict(enumerate(labels)), "rms_norm_eps": 0.0, **config})
    model = LlamaForSequenceClassification(how)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
        embedding = model.get_input_embeddings().weight
        embedding.zero_()
        embedding[:, 0] = 1.0
        embedding[tokenizer.convert_tokens_to_ids("!")] = torch.eye(32)[1]
        model.score.weight.zero_()
        model.score.weight[:, :2] = torch.tensor(np.stack(logits, 1) / math.sqrt(32))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
