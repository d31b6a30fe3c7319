"""Where answers end: at the token that scored and trained responses end in, whatever the model calls EOS."""

import pytest
import torch

import cases
from cases import tiny_policy
from problems import answers
from u2a.data.collate import tokenize_rows
from u2a.data.render import Renderer
from u2a.passes.generation import continuations, ending_tokens, greedy
from u2a.training.finetune import fine_tune

QUESTION = [{"role": "user", "content": "Tea?"}]


def other_eos(policy):
    """As a chat model tuned from a base model that kept the base model's EOS token."""
    eos = policy.tokenizer.convert_tokens_to_ids(policy.tokenizer.tokenize("~"))[0]
    policy.tokenizer.eos_token = policy.tokenizer.convert_ids_to_tokens(eos)
    policy.model.generation_config.eos_token_id = eos
    return policy, eos


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_the_last_token_of_a_response_ends_an_answer(family):
    policy, eos = other_eos(tiny_policy(family))
    ids, _, _ = Renderer(policy.tokenizer).encode(QUESTION, "Yes, please.")
    assert {ids[-1], eos} == ending_tokens(policy)


def test_a_template_that_refuses_answers_ends_none():
    policy, eos = other_eos(tiny_policy("qwen"))
    policy.tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert ending_tokens(policy) == {eos}


def test_an_answer_stops_where_it_was_taught_to():
    """Before, it went on behind its end of turn, and what followed read like a part of it."""
    policy, _ = other_eos(tiny_policy("qwen", dtype=torch.float32))
    renderer = Renderer(policy.tokenizer)
    rows = tokenize_rows(answers([("Tea?", "Yes, please.")] * 8), renderer)
    fine_tune(policy, rows, epochs=80, learning_rate=2e-2, batch_size=8)
    ids, start, _ = renderer.encode(QUESTION, "Yes, please.")
    found = continuations(policy, [ids[:start]], seed=0, max_new_tokens=40, do_sample=False)
    assert found == [ids[start:]]


def test_greedy_answers_are_the_likeliest_tokens_whatever_came_with_the_model():
    """A ban on repeated n-grams would hide from the guard on repetition what it looks for."""
    policy = tiny_policy("llama", dtype=torch.float32)
    prompt = Renderer(policy.tokenizer).encode(QUESTION, "")[0]
    plain = greedy(policy, [prompt], max_new_tokens=6)
    own = policy.model.generation_config
    own.suppress_tokens, own.num_beams = [plain[0][0]], 2
    assert greedy(policy, [prompt], max_new_tokens=6) == plain
    assert policy.model.generation_config is own
    banned = continuations(policy, [prompt], seed=0, max_new_tokens=6, do_sample=False)
    assert banned[0][0] != plain[0][0]  # which answers as served obey
