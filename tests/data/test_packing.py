"""Packed texts: every text once, prompts computed once, log-probs and gradients as one by one."""

import math
import types

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from cases import FAMILIES, tiny_policy
from problems import tiny_problem
from u2a import logprobs
from u2a.data.packing import ROW_TOKENS, packed_batches, plan
from u2a.impact.context import ScoringContext
from u2a.impact.gradient import weighted_logprob_gradient
from u2a.logprobs import response_logprobs
from u2a.passes import dataset as passes
from u2a.passes import packable
from u2a.passes.dataset import dataset_logprobs
from u2a.passes.packable import can_pack


def texts(prompts=5, answers=3, seed=0):
    """Tokenised rows: `answers` answers of ragged length to each of some prompts of ragged length."""
    generator = torch.Generator().manual_seed(seed)

    def draw(least, most):
        count = int(torch.randint(least, most, (1,), generator=generator))
        return torch.randint(5, 390, (count,), generator=generator).tolist()

    rows = []
    for _ in range(prompts):
        prompt = draw(20, 40)
        for _ in range(answers):
            answer = draw(2, 12)
            rows.append(
                {"input_ids": prompt + answer, "response_start": len(prompt), "n_tokens": len(answer)}
            )
    order = torch.randperm(len(rows), generator=generator).tolist()
    return Dataset.from_list([{**rows[i], "row": n} for n, i in enumerate(order)])


def plainly(model, rows):
    """One text at a time: no padding, no packing."""
    return torch.cat(
        [
            response_logprobs(model, next(iter(passes.length_sorted_batches(rows.select([i]), **OPTIONS))))
            for i in range(len(rows))
        ]
    )


OPTIONS = {"max_tokens": 300, "pad_token_id": 0}


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_the_texts_one_by_one(family):
    model = tiny_policy(family, dtype=torch.float64).model
    rows = texts()
    assert can_pack(model, rows, plan(rows, 300), 0)
    packed = dataset_logprobs(model, rows, **OPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(packed, plainly(model, rows), rtol=1e-5, atol=1e-5)


def test_every_text_once_and_fewer_tokens():
    rows = texts(prompts=40, answers=4)
    found = plan(rows, 1024)
    index = torch.cat([batch.index for batch in packed_batches(rows, found, pad_token_id=0)])
    assert sorted(index.tolist()) == list(range(160))
    assert found.plain == sum(len(ids) for ids in rows["input_ids"])
    assert found.tokens < 0.6 * found.plain
    total = sum(batch.input_ids.numel() for batch in packed_batches(rows, found, pad_token_id=0))
    assert total <= found.tokens
    for batch in packed_batches(rows, found, pad_token_id=0):
        assert batch.input_ids.numel() <= 1024
        assert batch.input_ids.shape[1] <= ROW_TOKENS


def test_a_prompt_with_very_many_answers_is_split():
    rows = texts(prompts=1, answers=200)
    found = plan(rows, 512)
    assert max(group.size for group in found.sharing) <= ROW_TOKENS
    index = torch.cat([batch.index for batch in packed_batches(rows, found, pad_token_id=0)])
    assert sorted(index.tolist()) == list(range(200))


@pytest.mark.usefixtures("true_float64")
def test_gradients_through_shared_prompts_are_those_without_sharing(monkeypatch):
    problem = tiny_problem("llama")
    context = ScoringContext.of(problem)
    rows, coefficients = texts(), torch.linspace(-1, 1, 15, dtype=torch.float64)
    assert can_pack(context.model, rows, plan(rows, 96), 0)
    shared = weighted_logprob_gradient(context, rows, coefficients)
    monkeypatch.setattr(passes, "_WORTH_PACKING", 0.0)
    apart = weighted_logprob_gradient(context, rows, coefficients)
    for name, value in apart.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-8, atol=1e-12)


def test_texts_without_common_prompts_are_not_packed(monkeypatch):
    model = tiny_policy("llama").model
    monkeypatch.setattr(passes, "can_pack", lambda *_: pytest.fail("no prompt is shared here"))
    dataset_logprobs(model, texts(prompts=12, answers=1), **OPTIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_the_mask_is_found_out(monkeypatch, dtype):
    """Also in 16 bits, where rounding is coarse; one that obeys it is taken there too."""
    rows = texts()
    assert can_pack(tiny_policy("llama", dtype=dtype).model, rows, plan(rows, 300), 0)
    model = tiny_policy("llama", dtype=dtype).model
    monkeypatch.setattr(logprobs, "_additive", lambda mask, dtype: torch.zeros(mask.shape, dtype=dtype))
    assert not can_pack(model, rows, plan(rows, 300), 0)
    monkeypatch.undo()
    assert not can_pack(model, rows, plan(rows, 300), 0), "the finding is kept"
    monkeypatch.setattr(passes.packing, "packed_batches", lambda *_, **__: pytest.fail("packed all the same"))
    dataset_logprobs(model, rows, **OPTIONS)


def test_a_window_narrower_than_a_text_is_not_packed():
    model = tiny_policy("llama").model
    rows = texts()
    base = logprobs.unwrapped(model)
    base.config.sliding_window = 10
    assert not can_pack(model, rows, plan(rows, 300), 0)


def test_the_window_of_a_composite_model_is_found():
    """As in Gemma 3, whose configuration keeps it with the text model's part."""
    text = types.SimpleNamespace(sliding_window=64, attention_chunk_size=None)
    config = types.SimpleNamespace(get_text_config=lambda: text)
    assert packable._window(config) == 64
    text.sliding_window = None
    assert packable._window(config) == math.inf


def test_layers_that_see_a_part_of_the_row_are_found_out():
    """GPT-Neo's local layers count in the row, whatever mask they get: many answers to one prompt come out
    wrong, also after few came out right, and beside wider rows of others."""
    torch.manual_seed(0)
    layers = {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 600}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPTNeoForCausalLM(GPTNeoConfig(**layers, **sizes, **tokens, window_size=60)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20)
    few, many = texts(prompts=12, answers=2), texts(prompts=1, answers=20, seed=1)
    for rows, right in ((few, True), (concatenate_datasets([few, many]), False)):
        assert can_pack(model, rows, plan(rows, 300), 0) == right
        torch.testing.assert_close(dataset_logprobs(model, rows, **OPTIONS), plainly(model, rows).detach())


def test_a_response_without_a_prompt():
    """The first token has nothing before it: as in length-sorted batches, it is not counted."""
    model = tiny_policy("llama", dtype=torch.float64).model
    rows = Dataset.from_list(
        [
            {"row": i, "input_ids": ids, "response_start": start, "n_tokens": 3}
            for i, (ids, start) in enumerate(
                [([7, 8, 9], 0), ([7, 9, 11, 12], 1), ([7, 5, 6], 1), ([20, 21, 22, 23], 0)]
            )
        ]
    )
    (batch,) = packed_batches(rows, plan(rows, 300), pad_token_id=0)
    with torch.no_grad():
        found = response_logprobs(model, batch)[batch.index.argsort()]
        torch.testing.assert_close(found, plainly(model, rows), rtol=1e-6, atol=1e-6)
