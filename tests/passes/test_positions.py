"""A text longer than the model's positions is refused, lowered or told of; what is generated has room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    BloomConfig,
    CTRLConfig,
    GPT2Config,
    GPTJConfig,
    OPTConfig,
    PreTrainedConfig,
    RobertaConfig,
)

import cases
from u2a import evaluate, load_negatives, load_policy, load_preferences, prepare
from u2a.evaluation.subject import Sampling
from u2a.passes.generation import continuations
from u2a.passes.positions import table_of_positions, usable_length, with_room
from u2a.types import UserError

N = 24
WIDTH = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIGURATIONS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=N),
    "opt": OPTConfig(
        vocab_size=64, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=N, **WIDTH
    ),  # two rows more
    "biogpt": BioGptConfig(vocab_size=64, intermediate_size=48, max_position_embeddings=N, **WIDTH),
    "gptj": GPTJConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=N, rotary_dim=4),
    "ctrl": CTRLConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=N, dff=48),
    "roberta": RobertaConfig(  # two rows fewer
        vocab_size=64, intermediate_size=48, max_position_embeddings=N, is_decoder=True, **WIDTH
    ),
}
PAIRS = [{"prompt": f"Is {i} odd? " * 60, "chosen": "Maybe so.", "rejected": "No."} for i in range(3)]
NEGATIVES = [{"prompt": f"Question {i}? " * 60, "completion": "No. " * 9} for i in range(3)]


@pytest.mark.parametrize("kind", CONFIGURATIONS)
@torch.no_grad()
def test_the_table_ends_where_the_model_fails(kind: str) -> None:
    model: Any = AutoModelForCausalLM.from_config(CONFIGURATIONS[kind]).eval()
    ends = table_of_positions(model)
    assert ends == (N - 2 if kind == "roberta" else N)
    model(input_ids=torch.full((1, ends), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, ends + 1), 5))


def test_models_without_a_table(family: str) -> None:
    assert table_of_positions(cases.tiny_model(family)) == (512 if family == "gpt2" else None)
    assert table_of_positions(AutoModelForCausalLM.from_config(BloomConfig(**WIDTH))) is None


def test_a_length_beyond_the_table(caplog: pytest.LogCaptureFixture) -> None:
    model = cases.tiny_policy("gpt2").model
    assert usable_length(model, 512) == 512
    assert usable_length(model, 100) == 100
    assert not caplog.messages
    with pytest.raises(UserError, match=r"--max-length 2048: the model has 512 positions; take at most 512"):
        usable_length(model, 2048)
    assert usable_length(model, 2048, usual=2048) == 512
    assert caplog.messages == ["--max-length is 512 and not 2048: the model has no more positions"]


def test_a_length_beyond_rotary_positions_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    model = cases.tiny_policy("llama").model
    assert usable_length(model, 2048) == usable_length(model, 2048, usual=2048) == 2048
    assert "--max-length 2048 is beyond the 512 positions" in caplog.text
    bloom = AutoModelForCausalLM.from_config(BloomConfig(**WIDTH))
    caplog.clear()
    assert usable_length(bloom, 1 << 20) == 1 << 20
    assert not caplog.messages


def test_prompts_leave_room_for_new_tokens() -> None:
    model = cases.tiny_model("gpt2")
    prompts = [[7, *range(500)], [7, 8]]
    assert with_room(model, prompts, 12, None) == [list(range(500)), [7, 8]]
    assert with_room(model, prompts, 12, 7) == [[7, *range(1, 500)], [7, 8]]
    assert with_room(cases.tiny_model("llama"), prompts, 512, 7) == prompts
    with pytest.raises(UserError, match="512 new tokens leave no room for a prompt: the model has 512 pos"):
        with_room(model, prompts, 512, 7)


def test_generation_goes_to_the_last_position() -> None:
    policy = cases.tiny_policy("gpt2")
    long, short = list(range(5, 305)) * 2, [5, 6, 7]
    (cut,) = continuations(policy, [long], seed=0, max_new_tokens=8, do_sample=False)
    (same,) = continuations(policy, [long[-504:]], seed=0, max_new_tokens=8, do_sample=False)
    assert cut == same
    assert continuations(policy, [short], seed=0, max_new_tokens=8, do_sample=False)


def test_a_problem_and_an_evaluation_of_long_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Before, an IndexError of torch's: of the table, or of the answers behind a prompt that filled it."""
    config = cases.tiny_model("gpt2").config
    config.n_positions = 200
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    cases.tiny_tokenizer("gpt2").save_pretrained(tmp_path)
    rows = {"negatives": load_negatives(NEGATIVES), "preferences": load_preferences(PAIRS)}
    with pytest.raises(UserError, match="--max-length 300: the model has 200 positions"):
        prepare(load_policy(tmp_path, lora_rank=2), **rows, max_length=300)
    with pytest.raises(UserError, match="--max-length 300: the model has 200 positions"):
        evaluate(tmp_path, {}, metrics=["preference"], test=rows["preferences"], max_length=300)
    problem = prepare(load_policy(tmp_path, lora_rank=2), **rows)
    assert max(map(len, problem.negative_texts["input_ids"])) == 200
    assert "--max-length is 200 and not 512" in caplog.text
    drawn = prepare(
        load_policy(tmp_path, lora_rank=2),
        **rows,
        objective="reward",
        objective_options={"samples": 2, "max_new_tokens": 20},
        scorer=lambda _, answers: [float(len(answer)) for answer in answers],
    )
    assert drawn.measure().objective >= 0
    found = evaluate(
        tmp_path,
        {},
        metrics=["fluency"],
        test=rows["preferences"],
        sampling=Sampling(max_new_tokens=20),
    )
    assert found.readings["original"]
