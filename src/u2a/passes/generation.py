"""Continuations of prompts: padded on the left, seeded, and cut at the token that ends an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList

from u2a.data.chat_template import ChatTemplate
from u2a.logprobs import evaluating, unwrapped
from u2a.passes.memory import WHAT_TO_DO, is_out_of_memory, largest, lower
from u2a.passes.positions import with_room
from u2a.types import GuardStop, OutOfMemory

if TYPE_CHECKING:
    from u2a.models.policy import Policy

_GENERATING = "generating answers"


def continuations(policy: Policy, prompts: Sequence[list[int]], *, seed: int, **how: Any) -> list[list[int]]:
    """What the model puts behind each of B prompts, up to and with the first token that ends an answer.

    Where memory runs out, fewer prompts go at once from there on: greedy answers stay the same, and what is
    sampled is drawn anew. Prompts are cut on their left where the model has no positions for the new tokens.

    Args:
        prompts: token ids, at least one a prompt.
        seed: of this batch's draws; the global random state is left alone.
        how: options of transformers' `generate`, which go before those that came with the model.

    Raises:
        OutOfMemory: one prompt alone does not fit.
        UserError: the new tokens leave no position for a prompt.
    """
    bos = policy.tokenizer.bos_token_id
    prompts = with_room(policy.model, prompts, how.get("max_new_tokens", 0), bos)
    found: list[list[int]] = []
    while len(found) < len(prompts):
        begin = len(found)
        part = prompts[begin : begin + largest(policy.model, _GENERATING, len(prompts))]
        own = int(np.random.SeedSequence((seed, begin)).generate_state(1)[0]) if begin else seed
        try:
            found += _continued(policy, part, own, how)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if len(part) == 1:
            alone = f"one prompt of {len(part[0])} tokens alone"
            raise OutOfMemory(f"out of memory in {_GENERATING} with {alone}. {WHAT_TO_DO}")
        lower(policy.model, _GENERATING, len(part) // 2, "prompts at once (draws are new ones)")
    return found


def _continued(
    policy: Policy, prompts: Sequence[list[int]], seed: int, how: dict[str, Any]
) -> list[list[int]]:
    tokenizer, device = policy.tokenizer, policy.device
    pad_token_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left: an answer begins where its prompt ends
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ends = ending_tokens(policy)
    devices = [device] if device.type == "cuda" else []
    with evaluating(policy.model), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        output = policy.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            pad_token_id=pad_token_id,
            eos_token_id=sorted(ends) or None,
            **how,
        )
    return [_to_the_end(tokens, ends) for tokens in output[:, width:].tolist()]


def greedy(policy: Policy, prompts: Sequence[list[int]], *, max_new_tokens: int) -> list[list[int]]:
    """As `continuations`, always the likeliest token: no beams, and none of the penalties, bans or forced
    tokens that came with the model."""
    with _no_settings_of_its_own(unwrapped(policy.model)):
        return continuations(policy, prompts, seed=0, max_new_tokens=max_new_tokens, do_sample=False)


def sampled(
    policy: Policy, prompts: Sequence[list[int]], *, max_new_tokens: int, seed: int
) -> list[list[int]]:
    """As `continuations`, drawn from the model's own distribution π and from no other.

    Temperature 1, no top-k and no nucleus, and none of the penalties or forced tokens that came with the
    model. So what is drawn has the probability exp(s), s the log-prob of its tokens with the ending one: the
    model stopped there, or at `max_new_tokens`.

    Raises:
        GuardStop: a probability is not a number.
    """
    with _no_settings_of_its_own(unwrapped(policy.model)):
        return continuations(
            policy,
            prompts,
            seed=seed,
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            logits_processor=LogitsProcessorList([_refused_where_nan]),
        )


def _refused_where_nan(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Drawing from NaN would be an error of torch's, on a GPU one that nothing recovers from."""
    if scores.isnan().any():
        raise GuardStop(
            "the probability of a token is not a number where responses are drawn. While unlearning: lower "
            "--learning-rate. Else try --dtype float32"
        )
    return scores


def ending_tokens(policy: Policy) -> set[int]:
    """The tokens that end an answer: the model's own, the tokenizer's, and that of its chat template.

    The three differ: a chat model tuned from a base one may end its turns by `<|im_end|>`, as its template
    does, and keep the base model's `<|endoftext|>` as EOS.
    """
    configured = policy.model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    end_of_turn = ChatTemplate(policy.tokenizer).ending_token
    if end_of_turn:
        listed = [*listed, policy.tokenizer.convert_tokens_to_ids(end_of_turn)]
    return {token for token in (*listed, policy.tokenizer.eos_token_id) if token is not None}


def _to_the_end(tokens: list[int], ends: set[int]) -> list[int]:
    """What stands behind the first ending token is padding."""
    length = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:length]


@contextmanager
def _no_settings_of_its_own(model: nn.Module) -> Iterator[None]:
    """Within, `generate` finds nothing that came with the model and would fill in what a call leaves out."""
    own: Any = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id)  # type: ignore[assignment]
    try:
        yield
    finally:
        model.generation_config = own
