"""`Policy` and `load_policy`: the reference is exact, options do what they say, mistakes are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import cases
from u2a.data.render import Renderer
from u2a.evaluation.answers import answer
from u2a.models import policy as models
from u2a.models.policy import Policy, add_adapter, ensure_pad_token, load_policy, that_pads
from u2a.passes.generation import sampled
from u2a.types import UserError

IDS = torch.tensor([[5, 60, 7, 80, 9, 100]])


@torch.no_grad()
def logits(policy: Policy) -> Tensor:
    return policy.model(IDS).logits


def randomise(policy: Policy, std: float = 0.1) -> None:
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=std)


# -- the policy -----------------------------------------------------------------------------------------


def test_reference_is_the_original_model_exactly(family: str) -> None:
    policy = cases.tiny_policy(family)
    base = cases.tiny_model(family)(IDS).logits
    before = logits(policy)
    with policy.reference() as reference:
        assert torch.equal(reference(IDS).logits, base)
        assert policy.trainable() == {}
    assert torch.equal(logits(policy), before)
    assert not torch.allclose(before, base, atol=1e-3)
    assert policy.trainable()


def test_reference_comes_back_after_an_error(policy: Policy) -> None:
    before = logits(policy)
    with pytest.raises(ZeroDivisionError), policy.reference():
        raise ZeroDivisionError
    assert torch.equal(logits(policy), before)


def test_policy_starts_as_the_original_model(family: str, tmp_path: Path) -> None:
    policy = load_policy(cases.save_tiny(tmp_path, family))
    assert torch.equal(logits(policy), cases.tiny_model(family)(IDS).logits)
    assert policy.has_adapter
    assert not policy.model.training
    assert policy.source == str(tmp_path)
    assert policy.device == torch.device("cpu")


def test_trainable_are_the_adapters_in_the_order_of_the_model(policy: Policy) -> None:
    names = list(policy.trainable())
    assert names == [n for n, _ in policy.model.named_parameters() if "lora_" in n]
    assert len(names) == 2 * 2 * 7  # A and B, 2 layers, 7 linear layers each


def test_merge_folds_the_adapter_in(family: str, tmp_path: Path) -> None:
    policy = cases.tiny_policy(family)
    before = logits(policy)
    merged = policy.merge()
    assert policy.model is merged
    assert not policy.has_adapter
    torch.testing.assert_close(logits(policy), before, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(IDS).logits, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_saved_policy_is_a_source(
    model_folder: Path, tmp_path: Path, lora_rank: int, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = load_policy(model_folder, lora_rank=lora_rank)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    capfd.readouterr()
    policy.save(tmp_path / "saved")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "saved" / "adapter_config.json").is_file() == (lora_rank > 0)
    again = load_policy(tmp_path / "saved")
    torch.testing.assert_close(logits(again), logits(policy), rtol=1e-4, atol=1e-4)
    assert again.tokenizer.chat_template == policy.tokenizer.chat_template


def test_full_fine_tuning(model_folder: Path) -> None:
    policy = load_policy(model_folder, lora_rank=0)
    assert not policy.has_adapter
    assert len(policy.trainable()) == len(list(cases.tiny_model("llama").parameters()))
    assert policy.merge() is policy.model
    with pytest.raises(UserError, match=r"keeps no reference model.*cached"), policy.reference():
        pass


# -- the adapter ----------------------------------------------------------------------------------------


def test_seed_decides_a_and_leaves_the_global_random_state_alone(model_folder: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    same, twin, other = (load_policy(model_folder, seed=seed).trainable() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(same[name], twin[name]) for name in same)
    a = [name for name in same if "lora_A" in name]
    assert a
    assert not any(torch.equal(same[name], other[name]) for name in a)
    assert all(not value.any() for name, value in same.items() if "lora_B" in name)


def test_a_redrawn_adapter_is_the_original_model_with_another_a(model_folder: Path) -> None:
    policy = load_policy(model_folder, lora_rank=2, seed=0)
    for p in policy.trainable().values():
        torch.nn.init.ones_(p)
    state = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        policy.redraw_adapter(seed)
        drawn.append({name: p.detach().clone() for name, p in policy.trainable().items()})
    assert torch.equal(torch.get_rng_state(), state)
    a = [name for name in drawn[0] if "lora_A" in name]
    assert all(not drawn[0][name].any() for name in drawn[0] if name not in a)
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in a)
    assert not any(torch.equal(drawn[0][name], drawn[2][name]) for name in a)
    same_shape = [drawn[0][name] for name in a if drawn[0][name].shape == drawn[0][a[0]].shape]
    assert not torch.equal(same_shape[0], same_shape[1])  # each layer has its own


def test_without_an_adapter_nothing_is_redrawn(model_folder: Path) -> None:
    policy = load_policy(model_folder, lora_rank=0)
    before = {name: p.detach().clone() for name, p in policy.trainable().items()}
    policy.redraw_adapter(1)
    assert all(torch.equal(before[name], p) for name, p in policy.trainable().items())


def test_rank_alpha_and_targets(model_folder: Path) -> None:
    policy = load_policy(model_folder, lora_rank=3, lora_targets="q_proj, down_proj")
    assert {name.split(".")[-4] for name in policy.trainable()} == {"q_proj", "down_proj"}
    assert {min(value.shape) for value in policy.trainable().values()} == {3}
    config = policy.model.peft_config["default"]
    assert config.lora_alpha == 6
    assert config.base_model_name_or_path == str(model_folder)
    strong = load_policy(model_folder, lora_rank=3, lora_alpha=60, lora_targets="q_proj, down_proj")
    for one in (policy, strong):
        torch.manual_seed(0)
        randomise(one, std=0.01)
    base = cases.tiny_model("llama")(IDS).logits
    assert (logits(strong) - base).norm() > 5 * (logits(policy) - base).norm()


def test_dropout_acts_in_training_only(model_folder: Path) -> None:
    policy = load_policy(model_folder, lora_dropout=0.5)
    randomise(policy)
    assert torch.equal(logits(policy), logits(policy))
    policy.model.train()
    assert not torch.equal(logits(policy), logits(policy))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"lora_targets": "q_proj,nothing"}, r"named nothing; this model has .*q_proj"),
        ({"lora_targets": " , "}, "--lora-targets"),
        ({"lora_dropout": 1.0}, "--lora-dropout 1.0"),
        ({"lora_rank": -1}, "--lora-rank -1"),
        ({"dtype": "int8"}, "--dtype int8"),
        ({"device": "toaster"}, "--device toaster"),
        ({"quantize": "8bit"}, "--quantize 8bit"),
        ({"quantize": "4bit", "lora_rank": 0}, "needs --lora-rank above 0"),
        ({"quantize": "4bit", "device": "cpu"}, "--quantize 4bit needs an accelerator"),
        ({"attn_implementation": "telepathy"}, "telepathy"),
    ],
)
def test_bad_options_are_refused(model_folder: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_policy(model_folder, **option)


def test_attention_is_chosen(model_folder: Path) -> None:
    policy = load_policy(model_folder, attn_implementation="eager")
    assert policy.model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("dtype", "base", "adapter"),
    [
        ("auto", torch.float32, torch.float32),
        ("float64", torch.float64, torch.float64),
        ("bfloat16", torch.bfloat16, torch.float32),
        ("float16", torch.float16, torch.float32),
    ],
)
def test_dtype(model_folder: Path, dtype: str, base: torch.dtype, adapter: torch.dtype) -> None:
    """On the CPU; adapters of a 16-bit base are float32, so that small steps are not rounded away."""
    policy = load_policy(model_folder, dtype=dtype, device="cpu")
    kinds = {"lora" in name: value.dtype for name, value in policy.model.named_parameters()}
    assert kinds == {False: base, True: adapter}


def test_four_bit_needs_bitsandbytes(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("u2a.models.options.check_device", torch.device)  # as on a machine that has one
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UserError, match="needs bitsandbytes: pip install"):
        load_policy(model_folder, quantize="4bit", device="cuda", dtype="float32")


def test_adapter_is_not_merged_into_four_bits(policy: Policy) -> None:
    policy.model.get_base_model().is_quantized = True
    with pytest.raises(UserError, match="4 bits without loss"):
        policy.merge()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_qlora(tmp_path: Path) -> None:
    """A base in 4 bits stays frozen, the adapter learns, and the adapter off is the quantised original."""
    pytest.importorskip("bitsandbytes")
    policy = load_policy(cases.save_tiny(tmp_path, "llama"), quantize="4bit")
    assert {type(m).__name__ for n, m in policy.model.named_modules() if n.endswith("base_layer")} == {
        "Linear4bit"
    }
    ids = IDS.to(policy.device)
    with policy.reference(), torch.no_grad():
        before = policy.model(ids).logits
    policy.model(ids).logits.float().square().mean().backward()
    assert all(value.grad is not None for value in policy.trainable().values())
    randomise(policy)
    with policy.reference(), torch.no_grad():
        assert torch.equal(policy.model(ids).logits, before)
    with pytest.raises(UserError, match="4 bits"):
        policy.merge()


# -- pad token ------------------------------------------------------------------------------------------


def test_pad_token_is_there_for_every_family(family: str, tmp_path: Path) -> None:
    policy = load_policy(cases.save_tiny(tmp_path, family))
    given = cases.tiny_tokenizer(family).pad_token
    assert policy.tokenizer.pad_token == (given or policy.tokenizer.eos_token)
    assert policy.model.config.pad_token_id == policy.tokenizer.pad_token_id
    assert policy.model.generation_config.pad_token_id == policy.tokenizer.pad_token_id


def test_pad_token_without_eos() -> None:
    tokenizer = cases.tiny_tokenizer("gpt2")
    tokenizer.eos_token = None
    ensure_pad_token(tokenizer, cases.tiny_model("gpt2"))
    assert tokenizer.pad_token_id is None
    assert that_pads(tokenizer).pad_token_id == 0
    assert tokenizer.pad_token_id is None
    tokenizer.pad_token = "a"
    assert that_pads(tokenizer) is tokenizer


@pytest.mark.filterwarnings("ignore:.*pad_token_id")
def test_token_0_stays_a_token_of_texts_where_nothing_pads(tmp_path: Path) -> None:
    """`!` of a byte-level vocabulary without special tokens, in memory and as saved."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE

    whole = Tokenizer(BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    whole.train_from_iterator(
        ["Stop it!! Wow!!"] * 9, trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole)
    assert tokenizer.convert_ids_to_tokens(0) == "!"
    model = cases.tiny_model("llama", tokenizer=tokenizer)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    policy = load_policy(str(tmp_path / "base"), lora_rank=2)
    policy.save(tmp_path / "adapter")
    text = "Stop it!! Wow!"
    for found in (policy.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "adapter")):
        ids = found(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]
        assert found.decode(ids, skip_special_tokens=True) == text
    prompt = [{"role": "user", "content": "Stop it!"}]
    assert isinstance(answer(policy, Renderer(policy.tokenizer), prompt, max_new_tokens=3), str)
    assert len(sampled(policy, [[0, 1], [5]], max_new_tokens=3, seed=0)) == 2


def test_adapter_of_conv1d_layers_warns_of_nothing() -> None:
    wrapped = add_adapter(cases.tiny_model("gpt2"))
    assert wrapped.peft_config["default"].fan_in_fan_out


def test_a_model_that_is_only_read_takes_the_format_of_the_device(monkeypatch, tmp_path):
    """As on a card that computes in bfloat16; what AdamW steps on stays float32."""
    monkeypatch.setattr(
        models, "dtype_of", lambda dtype, _: {"auto": torch.bfloat16}.get(dtype, torch.float64)
    )
    source = cases.save_tiny(tmp_path / "model", "llama")
    kinds = {
        trained: {
            (p.dtype, p.requires_grad)
            for p in load_policy(source, lora_rank=0, trained=trained).model.parameters()
        }
        for trained in (True, False)
    }
    assert kinds == {True: {(torch.float32, True)}, False: {(torch.bfloat16, False)}}
    read = load_policy(source, lora_rank=0, trained=False, dtype="float64").model
    assert {p.dtype for p in read.parameters()} == {torch.float64}
