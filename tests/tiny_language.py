"""A language of eight tokens whose every response of at most two tokens can be listed: exact expectations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from u2a.data.collate import collate, token_rows
from u2a.logprobs import response_logprobs
from u2a.models.policy import Policy, add_adapter

if TYPE_CHECKING:
    from u2a.problem import Problem

WORDS = ("<eos>", "<unk>", "q", "p", "a", "b", "c", "d")
EOS = 0
LONGEST = 2
"""Tokens of the longest response."""
RESPONSES = [[EOS], *([first, last] for first, last in product(range(1, len(WORDS)), range(len(WORDS))))]
"""Every response there is, with the token that ended it."""


def tokenizer() -> PreTrainedTokenizerFast:
    """A word is a token."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", unk_token="<unk>", pad_token="<eos>"
    )


def policy(seed: int = 0, lora_rank: int = 2) -> Policy:
    """A float64 model of one layer with a LoRA adapter whose B is random: π_φ is not π_ref."""
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=EOS,
        pad_token_id=EOS,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.5)
        model = model.to(torch.float64).eval()
        if lora_rank:
            model = add_adapter(model, rank=lora_rank, seed=seed)
        made = Policy(model, tokenizer(), lora_rank > 0, "tiny language")
        for name, parameter in made.trainable().items():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    return made


def prompts(count: int, text: str = "q") -> Dataset:
    """The same prompt that many times: each is another draw."""
    turn = [{"role": "user", "content": text}]
    return Dataset.from_list([{"row": i, "prompt": turn} for i in range(count)])


def value_of(text: str) -> float:
    """A reward of each answer's own: `a` is hated, `b` liked, and an empty answer is worth a little."""
    return -2.0 * text.count("a") + 1.5 * text.count("b") + 0.5 * (not text) + 0.25 * text.startswith("c")


def scorer(_prompts: Any, answers: Any) -> list[float]:
    """`value_of` each answer."""
    return [value_of(answer) for answer in answers]


def all_logprobs(made: Policy, prompt: list[int]) -> Tensor:
    """s of every response to a prompt, (57,), differentiable."""
    texts = token_rows(range(len(RESPONSES)), [prompt] * len(RESPONSES), RESPONSES)
    rows = [texts[i] for i in range(len(texts))]
    return response_logprobs(made.model, collate(rows, range(len(rows)), pad_token_id=EOS))


@dataclass
class EveryResponse:
    """The same J as `Reward` draws, exactly: a sum over every response to the one prompt there is."""

    texts: Dataset
    rewards: Tensor
    reference: Tensor
    beta: float

    def terms(self, s: Tensor) -> Tensor:
        """E[r] − β·KL: (57,) -> (1,)."""
        rewards, reference = self.rewards.to(s), self.reference.to(s)
        return (s.exp() * (rewards - self.beta * (s - reference))).sum(0, keepdim=True)


def exact(problem: Problem, value: Callable[[str], float] = value_of) -> EveryResponse:
    """Of a prepared problem whose validation prompts are all the same."""
    policy, objective = problem.policy, problem.objective
    prompts = [objective.prompts[0]] * len(RESPONSES)
    texts = token_rows(range(len(RESPONSES)), prompts, RESPONSES)
    decoded = [policy.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in RESPONSES]
    rewards = torch.tensor([value(text) for text in decoded], dtype=torch.float64)
    return EveryResponse(texts, rewards, problem.reference_logprobs(texts), objective.beta)


def exact_objective(problem: Problem) -> Tensor:
    """J at the current φ, differentiable."""
    return exact(problem).terms(all_logprobs(problem.policy, problem.objective.prompts[0]))[0]
