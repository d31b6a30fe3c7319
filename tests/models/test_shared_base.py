"""Adapters on the weights of a loaded model: the same as loaded whole, and one set of weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from cases import FAMILIES, save_tiny
from u2a.cli import app
from u2a.models.policy import load_policy
from u2a.models.shared_base import policy_beside

IDS = torch.arange(4, 16).reshape(2, 6)


def logits(policy):
    with torch.no_grad():
        return policy.model(IDS).logits


def adapter(base, folder, seed=1, tokenizer=True, **config):
    """An adapter folder of random numbers, of the model in `base`."""
    policy = load_policy(base, lora_rank=0)
    conv = policy.model.config.model_type == "gpt2"
    options = {
        "r": 4,
        "target_modules": "all-linear",
        "fan_in_fan_out": conv,
        "task_type": "CAUSAL_LM",
        **config,
    }
    torch.manual_seed(seed)
    model = get_peft_model(policy.model, LoraConfig(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    if tokenizer:
        policy.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("family", FAMILIES)
def test_as_loaded_whole_on_the_same_tensors(tmp_path, family):
    base = load_policy(save_tiny(tmp_path / "base", family), lora_rank=0)
    before = logits(base)
    folders = [
        adapter(tmp_path / "base", tmp_path / f"a{seed}", seed, tokenizer=seed == 1) for seed in (1, 2)
    ]
    found = [policy_beside(base, folder) for folder in folders]
    for folder, policy in zip(folders, found, strict=True):
        whole = logits(load_policy(folder, lora_rank=0))
        torch.testing.assert_close(logits(policy), whole, rtol=1e-4, atol=1e-5)
        assert (whole - before).abs().max() > 1e-2
        assert not any(p.requires_grad for p in policy.model.parameters())
        assert policy.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert torch.equal(logits(base), before)
    ours = {p.data_ptr() for p in base.model.parameters()}
    for policy in found:
        more = [n for n, p in policy.model.named_parameters() if p.data_ptr() not in ours]
        assert more
        assert all("lora_" in name for name in more)
    assert not any("lora_" in name for name, _ in base.model.named_parameters())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "base", "llama")


@pytest.mark.parametrize(
    "config",
    [{"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}],
    ids=lambda config: next(iter(config)),
)
def test_an_adapter_that_changes_its_base_is_loaded_whole(tmp_path, base, config):
    folder = adapter(base, tmp_path / "adapter", **config)
    policy = load_policy(base, lora_rank=0)
    kept = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    assert policy_beside(policy, folder) is None
    assert all(torch.equal(tensor, kept[name]) for name, tensor in policy.model.state_dict().items())


def test_what_belongs_to_another_model_is_loaded_whole(tmp_path, base):
    other = save_tiny(tmp_path / "other", "llama", seed=5)
    policy = load_policy(base, lora_rank=0)
    assert policy_beside(policy, str(other)) is None
    assert policy_beside(policy, adapter(other, tmp_path / "its")) is None
    own = adapter(base, tmp_path / "own")
    assert policy_beside(policy, own) is not None
    assert policy_beside(load_policy(base), own) is None  # one with an adapter already


def test_chat_loads_the_weights_once(tmp_path, base, monkeypatch):
    from u2a.models import policy as models

    loaded = []

    def counted(source, **options):
        loaded.append(str(source))
        return load_policy(source, **options)

    monkeypatch.setattr(models, "load_policy", counted)
    own = [adapter(base, tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    words = ["chat", *own, "--original", str(base), "--max-new-tokens", "6"]
    result = CliRunner().invoke(app, words, input="Tea?\n")
    assert result.exit_code == 0, result.output
    assert loaded == [str(base)]
    assert result.output.count("on the weights of the original model") == 2
