"""A share of the layers scores: which layers, what stays the same, what changes."""

import numpy as np
import pytest
import torch

from cases import tiny_policy
from problems import tiny_problem
from u2a.impact.proxy_layers import keep_layers, layer_of
from u2a.impact.table import score_impact
from u2a.models.policy import Policy, add_adapter, ensure_pad_token


@pytest.mark.parametrize(
    "name, number",
    [
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight", 3),
        ("transformer.h.11.mlp.c_fc.weight", 11),
        ("model.layers.2.mlp.experts.5.up_proj", 2),
        ("model.layers.7", 7),
        ("model.embed_tokens.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_the_layer_of_a_name(name, number):
    assert layer_of(name) == number


def deep_policy(rank):
    """Eight layers of a tiny Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    small = tiny_policy("llama", lora_rank=0)
    config = LlamaConfig(**{**small.model.config.to_dict(), "num_hidden_layers": 8})
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    ensure_pad_token(small.tokenizer, model)
    if rank:
        model = add_adapter(model, rank=rank, seed=0)
    return Policy(model, small.tokenizer, rank > 0, "deep")


@pytest.mark.parametrize("rank", [2, 0])
def test_a_seeded_share_stays_and_the_rest_is_no_part_of_phi(rank):
    whole, policy = deep_policy(rank), deep_policy(rank)
    kept = keep_layers(policy, 0.25, seed=0)
    assert len(kept) == 2
    found, all_ = policy.trainable(), whole.trainable()
    assert {layer_of(name) for name in found} == set(kept)
    assert found.keys() == {name for name in all_ if layer_of(name) in kept}
    assert all(torch.equal(found[name], all_[name]) for name in found)
    assert keep_layers(deep_policy(rank), 0.25, seed=0) == kept
    assert any(keep_layers(deep_policy(rank), 0.25, seed=seed) != kept for seed in range(1, 4))
    assert len(keep_layers(deep_policy(rank), 0.3, seed=0)) == 3
    assert len(keep_layers(deep_policy(rank), 1e-6, seed=0)) == 1
    if rank:  # PEFT switches all it has on again after the reference
        with policy.reference():
            pass
        assert policy.trainable().keys() == found.keys()
    ids = torch.arange(5, 15)[None]
    assert torch.equal(policy.model(ids).logits, whole.model(ids).logits)


@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("scoring", ["exact", "fd"])
@pytest.mark.usefixtures("true_float64")
def test_the_two_halves_of_the_layers_add_up_to_the_whole(rank, scoring):
    """⟨∇ℓ, v⟩ is a sum over parameters, so with identity curvature the layers' shares of it add up."""
    from u2a.impact.curvature import Identity

    def impacts(seed=None):
        problem = tiny_problem("llama", lora_rank=rank, random_b=False)
        kept = None if seed is None else keep_layers(problem.policy, 0.5, seed)
        return kept, score_impact(problem, scoring=scoring, curvature=Identity()).impact

    seeds = {int(np.random.default_rng(seed).choice([0, 1], 1, replace=False)[0]): seed for seed in range(6)}
    halves = [impacts(seeds[layer]) for layer in (0, 1)]
    assert [kept for kept, _ in halves] == [[0], [1]]
    halves = [found for _, found in halves]
    assert not np.allclose(halves[0], halves[1])
    _, whole = impacts()
    if rank:  # full fine-tuning also has parameters outside of the layers
        error = np.linalg.norm(halves[0] + halves[1] - whole) / np.linalg.norm(whole)
        assert error < (1e-9 if scoring == "exact" else 1e-3)
