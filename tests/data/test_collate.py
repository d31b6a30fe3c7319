"""Tokenised data sets, padding and length-sorted batches."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, concatenate_datasets

import cases
from u2a.data import collate as collate_module
from u2a.data.collate import Renderer, collate, length_sorted_batches, tokenize_pairs, tokenize_rows
from u2a.data.load import load_negatives, load_preferences
from u2a.types import IGNORE, UserError


def rows(count: int = 7) -> list[dict[str, Any]]:
    return [
        {
            "row": 10 + i,
            "id": f"id-{i}",
            "prompt": [{"role": "user", "content": "tea " * (1 + i * 3 % 5)}],
            "response": "coffee " * (1 + i * 5 % 7) + "please",
        }
        for i in range(count)
    ]


def test_tokenized_rows_keep_the_order_and_count_response_tokens(family: str) -> None:
    renderer = Renderer(cases.tiny_tokenizer(family))
    tokenized = tokenize_rows(Dataset.from_list(rows()), renderer)
    assert tokenized.column_names == ["row", "input_ids", "response_start", "n_tokens"]
    assert tokenized["row"][:] == [10, 11, 12, 13, 14, 15, 16]
    for given, made in zip(rows(), tokenized, strict=True):
        ids, start, _ = renderer.encode(given["prompt"], given["response"])
        assert (made["input_ids"], made["response_start"]) == (ids, start)
        assert made["n_tokens"] == len(ids) - start


def test_row_is_the_position_when_there_is_no_such_column() -> None:
    data = Dataset.from_list(rows(3)).remove_columns(["row", "id"])
    tokenized = tokenize_rows(data, Renderer(cases.tiny_tokenizer("qwen")))
    assert tokenized["row"][:] == [0, 1, 2]


def test_other_response_columns_can_be_joined() -> None:
    pairs = Dataset.from_list([{**row, "chosen": "Yes.", "rejected": "No!"} for row in rows(2)])
    renderer = Renderer(cases.tiny_tokenizer("qwen"))
    parts = [tokenize_rows(pairs, renderer, response=name) for name in ("chosen", "rejected")]
    joined = concatenate_datasets(parts)
    texts = [renderer.tokenizer.decode(r["input_ids"][r["response_start"] :]) for r in joined]
    assert texts == ["Yes.<|im_end|>", "Yes.<|im_end|>", "No!<|im_end|>", "No!<|im_end|>"]


def test_response_without_tokens_names_the_row() -> None:
    data = rows(3)
    data[1]["response"] = "  "
    with pytest.raises(UserError, match=r"row 11 \(id id-1\): the answer has no tokens"):
        tokenize_rows(Dataset.from_list(data), Renderer(cases.tiny_tokenizer("llama")))


def test_refused_conversation_names_the_row() -> None:
    data = rows(3)
    data[2]["prompt"] = data[2]["prompt"] * 2
    with pytest.raises(UserError, match=r"row 12 \(id id-2\): .*must alternate"):
        tokenize_rows(Dataset.from_list(data), Renderer(cases.tiny_tokenizer("gemma")))


def write_jsonl(path: Path) -> Dataset:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    return Dataset.from_json(str(path), cache_dir=str(path.parent / "cache"))  # type: ignore[return-value]


def test_cut_rows_are_counted_also_from_the_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl")
    tokenizer = cases.tiny_tokenizer("gpt2")
    lengths = [Renderer(tokenizer).encode(row["prompt"], row["response"]) for row in rows()]
    limit = 20
    too_long = sum(len(ids) > limit for ids, _, _ in lengths)
    response_too_long = sum(len(ids) - start >= limit for ids, start, _ in lengths)
    assert 0 < response_too_long < too_long
    for _ in range(2):
        caplog.clear()
        collate_module._told.clear()
        with caplog.at_level(logging.WARNING, logger="u2a"):
            tokenized = tokenize_rows(data, Renderer(tokenizer, max_length=limit))
        assert max(len(ids) for ids in tokenized["input_ids"]) == limit
        said = [record.getMessage() for record in caplog.records]
        assert said == [
            f"{too_long} of 7 prompts were cut on the left to --max-length 20",
            f"{response_too_long} of 7 answers were cut on the right to --max-length 20",
        ]


def test_a_cut_is_told_once_with_role_and_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It named a column of ours, not the file, and of pairs the prompts twice."""
    long = {"prompt": "tea " * 60, "chosen": "coffee " * 80, "rejected": "no"}
    path = cases.jsonl(tmp_path / "pairs.jsonl", [long, {**long, "prompt": "tea?", "chosen": "yes"}])
    renderer = Renderer(cases.tiny_tokenizer("gpt2"), max_length=40)
    with caplog.at_level(logging.WARNING, logger="u2a"):
        for _ in range(2):
            tokenize_pairs(load_preferences(path), renderer, role="test")
            tokenize_rows(load_negatives([long]), renderer, role="negatives")
            tokenize_rows(load_negatives(path), renderer)
    once = [record.getMessage() for record in caplog.records][:4]
    assert once == [
        f"test ({path}): 1 of 2 prompts were cut on the left to --max-length 40",
        f"test ({path}): 1 of 2 chosen answers were cut on the right to --max-length 40",
        "negatives: 1 of 1 prompts were cut on the left to --max-length 40",
        f"{path}: 1 of 2 prompts were cut on the left to --max-length 40",
    ]
    caplog.clear()
    rows = load_preferences(path)
    with caplog.at_level(logging.WARNING, logger="u2a"):
        for _ in range(2):
            tokenize_pairs(rows, Renderer(cases.tiny_tokenizer("gpt2"), max_length=39))
    assert len(caplog.records) == 2


def test_result_is_cached_under_tokenizer_template_and_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl")
    first = tokenize_rows(data, Renderer(cases.tiny_tokenizer("llama")))
    calls: list[str] = []
    encode = Renderer._encode

    def counted(self: Renderer, prompt: Any, response: str) -> Any:
        calls.append(response)
        return encode(self, prompt, response)

    monkeypatch.setattr(Renderer, "_encode", counted)
    again = tokenize_rows(data, Renderer(cases.tiny_tokenizer("llama")))
    assert calls == []
    assert again[:] == first[:]
    for other in (
        Renderer(cases.tiny_tokenizer("llama"), max_length=30),
        Renderer(cases.tiny_tokenizer("llama"), template="none"),
        Renderer(cases.tiny_tokenizer("qwen")),
    ):
        calls.clear()
        assert tokenize_rows(data, other)[:] != first[:]
        assert len(calls) == 7


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["ultrafeedback_eval.jsonl", "hh_harmless.jsonl"])
def test_real_answers_come_back(realdata: Path, family: str, name: str) -> None:
    from u2a.data.load import load_preferences

    pairs = load_preferences(realdata / name).select(range(5))
    renderer = Renderer(cases.tiny_tokenizer(family), max_length=100_000)
    for row, made in zip(pairs, tokenize_rows(pairs, renderer, response="rejected"), strict=True):
        ids, start = made["input_ids"], made["response_start"]
        answer = renderer.tokenizer.decode(ids)[len(renderer.tokenizer.decode(ids[:start])) :]
        assert answer.endswith(renderer.render(row["prompt"], row["rejected"])[1])
        assert row["rejected"] in answer
        assert made["n_tokens"] == len(ids) - start


TEXTS = [{"input_ids": [5, 6, 7, 8], "response_start": 2}, {"input_ids": [9, 4], "response_start": 1}]


def test_right_padding_by_hand() -> None:
    batch = collate(TEXTS, [3, 0], pad_token_id=1)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 4, 1, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE, IGNORE, 7, 8], [IGNORE, 4, IGNORE, IGNORE]]
    assert batch.index.tolist() == [3, 0]
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels, batch.index)} == {
        torch.int64
    }


def test_left_padding_by_hand() -> None:
    batch = collate(TEXTS, [3, 0], pad_token_id=1, padding_side="left")
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [1, 1, 9, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.labels.tolist() == [[IGNORE, IGNORE, 7, 8], [IGNORE, IGNORE, IGNORE, 4]]


def test_pad_token_inside_a_response_is_not_masked() -> None:
    """The pad token is often the EOS token, which ends every response."""
    batch = collate([{"input_ids": [5, 1], "response_start": 1}, TEXTS[0]], [0, 1], pad_token_id=1)
    assert batch.labels[0].tolist() == [IGNORE, 1, IGNORE, IGNORE]
    assert batch.attention_mask[0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("max_tokens", [1, 40, 70, 10_000])
def test_batches_hold_every_row_once_longest_first_within_the_budget(
    max_tokens: int, padding_side: str
) -> None:
    tokenized = tokenize_rows(Dataset.from_list(rows(9)), Renderer(cases.tiny_tokenizer("llama")))
    tokenized = tokenized.select([4, 1, 8, 0, 2, 3])  # an indices mapping, as splits have
    batches = list(
        length_sorted_batches(tokenized, max_tokens=max_tokens, pad_token_id=2, padding_side=padding_side)
    )
    seen = torch.cat([batch.index for batch in batches]).tolist()
    assert sorted(seen) == list(range(6))
    lengths = [len(tokenized[i]["input_ids"]) for i in seen]
    assert lengths == sorted(lengths, reverse=True)
    for batch in batches:
        assert batch.input_ids.numel() <= max_tokens or len(batch.index) == 1
        for b, position in enumerate(batch.index.tolist()):
            row = tokenized[position]
            kept = batch.attention_mask[b].bool()
            assert batch.input_ids[b][kept].tolist() == row["input_ids"]
            answer = batch.labels[b][batch.labels[b] != IGNORE].tolist()
            assert answer == row["input_ids"][row["response_start"] :]
            assert bool(kept[0 if padding_side == "right" else -1])
    if max_tokens == 10_000:
        assert len(batches) == 1
    if max_tokens == 1:
        assert len(batches) == 6


def test_a_row_of_a_file_is_refused_with_file_and_line(tmp_path: Path) -> None:
    """Not with its place in the data set: the good rows of a KTO file are left out before."""
    from u2a.data.load import load_negatives

    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    answer = [{"role": "assistant", "content": "x"}]
    rows = [
        {"prompt": turns[:1], "completion": answer, "label": True},
        {"prompt": turns[:1], "completion": answer, "label": False},
        {"prompt": turns, "completion": answer, "label": False},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"log\.jsonl, row 3: "):
        tokenize_rows(load_negatives(path), Renderer(cases.tiny_tokenizer("gemma")))
