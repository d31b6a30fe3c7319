"""Answers as a user would get them: greedy, from the model as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from u2a.logprobs import evaluating
from u2a.passes.generation import ending_tokens
from u2a.passes.positions import with_room

if TYPE_CHECKING:
    from u2a.data.render import Renderer
    from u2a.models.policy import Policy
    from u2a.types import Message


def answer(policy: Policy, renderer: Renderer, prompt: list[Message], *, max_new_tokens: int = 48) -> str:
    """Greedy continuation of a rendered prompt, without special tokens; at most `max_new_tokens` tokens."""
    tokenizer = policy.tokenizer
    ids = with_room(policy.model, [renderer.encode_prompt(prompt)], max_new_tokens, tokenizer.bos_token_id)
    inputs = torch.tensor(ids, device=policy.device)
    with evaluating(policy.model), torch.no_grad():
        output = policy.model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or 0,  # there is none: any will do
            eos_token_id=sorted(ending_tokens(policy)) or None,
        )
    return tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True).strip()
