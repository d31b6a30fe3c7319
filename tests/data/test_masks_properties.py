"""Labels cover the response and nothing else; padding, company and packing change nothing a token sees."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
from u2a.data.collate import Renderer, collate, length_sorted_batches
from u2a.data.packing import packed_batches, plan
from u2a.logprobs import response_logprobs
from u2a.types import IGNORE, Batch

TOKENS = st.lists(st.integers(5, 300), min_size=1, max_size=9)
ROWS = st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=6)
SIDES = st.sampled_from(["left", "right"])
LETTERS = st.text(st.characters(codec="utf-8", exclude_characters="\ufdd0"), max_size=8)
PROMPT = st.lists(LETTERS.filter(str.strip), min_size=1, max_size=2).map(
    lambda contents: [
        {"role": role, "content": text} for role, text in zip(("user", "assistant"), contents, strict=False)
    ]
)


def tokenized(rows: list[tuple[list[int], list[int]]]) -> list[dict[str, Any]]:
    return [
        {"row": n, "input_ids": p + r, "response_start": len(p), "n_tokens": len(r)}
        for n, (p, r) in enumerate(rows)
    ]


def unpadded(batch: Batch, b: int) -> tuple[list[int], list[int]]:
    """Tokens and labels of one text."""
    kept = batch.attention_mask[b].bool()
    return batch.input_ids[b][kept].tolist(), batch.labels[b][kept].tolist()


@settings(max_examples=60)
@given(rows=ROWS, side=SIDES)
def test_labels_cover_exactly_the_response(rows: Any, side: str) -> None:
    batch = collate(tokenized(rows), range(len(rows)), pad_token_id=0, padding_side=side)
    for b, (prompt, response) in enumerate(rows):
        ids, labels = unpadded(batch, b)
        assert ids == prompt + response
        assert labels == [IGNORE] * len(prompt) + response
    padding = batch.attention_mask == 0
    assert (batch.labels[padding] == IGNORE).all()
    assert (batch.input_ids[padding] == 0).all()
    first = 0 if side == "right" else -1
    assert (batch.attention_mask[:, first] == 1).all()


@settings(max_examples=25)
@given(rows=ROWS, budget=st.integers(1, 60), side=SIDES)
def test_every_row_once_and_the_same_in_any_batch(rows: Any, budget: int, side: str) -> None:
    texts = Dataset.from_list(tokenized(rows))
    found = {}
    for batch in length_sorted_batches(texts, max_tokens=budget, pad_token_id=0, padding_side=side):
        assert len(batch.index) == 1 or batch.input_ids.numel() <= budget
        for b, i in enumerate(batch.index.tolist()):
            assert i not in found
            found[i] = unpadded(batch, b)
    assert found == {i: (p + r, [IGNORE] * len(p) + r) for i, (p, r) in enumerate(rows)}


@pytest.mark.parametrize("family", cases.FAMILIES)
@settings(max_examples=20)
@given(prompt=PROMPT, response=LETTERS, limit=st.integers(2, 40))
def test_a_rendered_row_keeps_its_limit_and_a_context(
    family: str, prompt: Any, response: str, limit: int
) -> None:
    """Cut or not: at most `limit` tokens, at least one before the response, the response's first tokens."""
    if len(prompt) == 2:  # an answer is not the end of a prompt
        prompt = [*prompt, {"role": "user", "content": "And?"}]
    renderer = Renderer(_tokenizer(family), max_length=limit)
    whole, start, cut = Renderer(_tokenizer(family), max_length=100_000).encode(prompt, response)
    ids, response_start, response_cut = renderer.encode(prompt, response)
    assert not cut
    assert 1 <= response_start <= len(ids) <= limit
    answer = whole[start:]
    assert ids[response_start:] == answer[: limit - 1]
    assert response_cut == (len(answer) > limit - 1)


@cache
def _tokenizer(family: str) -> Any:
    return cases.tiny_tokenizer(family)


@cache
def _model(family: str) -> Any:
    return cases.tiny_model(family, dtype=torch.float64)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@settings(max_examples=10)
@given(rows=ROWS, side=SIDES, order=st.randoms(use_true_random=False))
def test_log_probs_do_not_depend_on_padding_or_company(family: str, rows: Any, side: str, order: Any) -> None:
    made = tokenized(rows)
    alone = [response_logprobs(_model(family), collate([row], [0], pad_token_id=0)) for row in made]
    index = list(range(len(made)))
    order.shuffle(index)
    batch = collate([made[i] for i in index], index, pad_token_id=0, padding_side=side)
    together = response_logprobs(_model(family), batch)
    torch.testing.assert_close(together, torch.cat(alone)[batch.index], rtol=1e-5, atol=1e-5)


@settings(max_examples=40)
@given(data=st.data(), budget=st.integers(1, 400))
def test_packing_keeps_every_token_once_and_each_sees_its_own_text(data: st.DataObject, budget: int) -> None:
    """Every response token is predicted from exactly the tokens of its own text before it, in order."""
    prompts = data.draw(st.lists(TOKENS, min_size=1, max_size=3))
    rows = [
        (data.draw(st.sampled_from(prompts)), data.draw(TOKENS)) for _ in range(data.draw(st.integers(1, 8)))
    ]
    texts = Dataset.from_list(tokenized(rows))
    found: dict[int, list[tuple[list[int], int]]] = {}
    for batch in packed_batches(texts, plan(texts, budget), pad_token_id=0):
        places = zip(
            *(getattr(batch, n).tolist() for n in ("rows", "columns", "targets", "example")), strict=True
        )
        for r, column, target, example in places:
            seen = batch.mask[r, 0, column]
            ids, positions = batch.input_ids[r][seen].tolist(), batch.position_ids[r][seen].tolist()
            assert positions == list(range(len(ids)))
            found.setdefault(int(batch.index[example]), []).append((ids, target))
    for i, (prompt, response) in enumerate(rows):
        whole = prompt + response
        assert found[i] == [(whole[:t], whole[t]) for t in range(len(prompt), len(whole))]
    assert len(found) == len(rows)
