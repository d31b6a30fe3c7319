"""Pairs whose prompt is too long: both answers follow the same one."""

import logging

import pytest
import torch

import cases
from cases import tiny_policy, tiny_tokenizer
from u2a.data.load import load_preferences
from u2a.data.render import Renderer
from u2a.passes.dataset import dataset_logprobs
from u2a.validation import pair_texts

LONG = "".join(f"fact {i}; " for i in range(20)) + "Which?"
ROWS = [
    {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No, and do not ask again."},
    {"prompt": LONG, "chosen": "A much longer and more careful answer than that.", "rejected": "No."},
    {"prompt": LONG, "chosen": "Yes.", "rejected": "A much longer and much less careful answer."},
]
ROOM = 80


def halves(texts):
    """(prompt, answer) of the chosen and of the rejected side of each pair."""
    parts = [(t["input_ids"][: t["response_start"]], t["input_ids"][t["response_start"] :]) for t in texts]
    return list(zip(parts[: len(parts) // 2], parts[len(parts) // 2 :], strict=True))


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_both_answers_of_a_pair_follow_one_prompt(family):
    tokenizer = tiny_tokenizer(family)
    renderer = Renderer(tokenizer, max_length=ROOM)
    whole, _ = pair_texts(load_preferences(ROWS), Renderer(tokenizer, max_length=4000))
    texts, chosen = pair_texts(load_preferences(ROWS), renderer)
    assert chosen[:] == texts.select(range(3))[:]
    uncut = halves(whole)
    for position, (good, bad) in enumerate(halves(texts)):
        assert good[0] == bad[0]
        assert (good[1], bad[1]) == (uncut[position][0][1], uncut[position][1][1])  # answers are whole
        prompt = uncut[position][0][0]
        if position == 0:
            assert good[0] == prompt
        else:  # as much of it as the longer answer leaves
            assert len(good[0]) + max(len(good[1]), len(bad[1])) == ROOM
            assert good[0][1:] == prompt[len(prompt) - len(good[0]) + 1 :]
            assert good[0][0] in (prompt[0], prompt[-len(good[0])])


def test_the_margin_of_a_cut_pair_is_that_of_one_prompt():
    """By hand: log-probs of both answers behind the shorter prompt."""
    policy = tiny_policy("llama", lora_rank=0, dtype=torch.float64)
    renderer = Renderer(policy.tokenizer, max_length=ROOM)
    texts, _ = pair_texts(load_preferences(ROWS[1:2]), renderer)
    found = dataset_logprobs(policy.model, texts, max_tokens=1000, pad_token_id=0)
    (prompt, good), (_, bad) = halves(texts)[0]

    def by_hand(answer):
        ids = torch.tensor([[*prompt, *answer]])
        logprobs = policy.model(ids).logits.log_softmax(-1)[0, :-1]
        return logprobs.detach().gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum()

    assert found[0] - found[1] == pytest.approx(float(by_hand(good) - by_hand(bad)), abs=1e-9)


def test_a_scaffold_that_one_answer_brings_itself_stays():
    """The prompts differ at their end then, and not by a cut."""
    tokenizer = tiny_tokenizer("qwen")
    scaffold = r"+ ('<think>\n\n</think>\n\n' if message['role'] == 'assistant' else '') + message['content']"
    tokenizer.chat_template = tokenizer.chat_template.replace("+ message['content']", scaffold)
    rows = [{"prompt": "Tea?", "chosen": "<think>Hm.</think> Yes.", "rejected": "No."}]
    texts, _ = pair_texts(load_preferences(rows), Renderer(tokenizer, max_length=400))
    assert texts[0]["response_start"] < texts[1]["response_start"]


def test_prompts_that_are_cut_before_they_are_answered_are_counted(caplog):
    renderer = Renderer(tiny_tokenizer("llama"), max_length=60)
    prompts = [[{"role": "user", "content": text}] for text in ("Tea?", LONG)]
    with caplog.at_level(logging.WARNING, "u2a"):
        found = renderer.encode_prompts(prompts)
    assert found == [renderer.encode_prompt(prompt) for prompt in prompts]
    assert len(found[1]) == 60
    assert "1 of 2 prompts to be answered were cut on the left to --max-length 60" in caplog.text
