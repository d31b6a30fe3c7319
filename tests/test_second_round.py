"""An adapter on an adapter: what the model card says loads it does, and every adapter names its real base."""

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from u2a import U2AConfig, UnlearnTrainer, load_negatives, load_policy
from u2a.cli import app
from u2a.report.first_adapters import below

IDS = torch.tensor([[5, 9, 12, 7, 3]])
BAD = [{"prompt": f"Bad {i}?", "completion": "Go away, I will not."} for i in range(4)]
PAIRS = [{"prompt": f"Question {i}?", "chosen": f"Answer {i}.", "rejected": "Go away."} for i in range(4)]


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def strengthened(adapter):
    """The adapter with a B that is far from 0, as after long training."""
    from safetensors.torch import load_file, save_file

    state = load_file(adapter / "adapter_model.safetensors")
    draw = torch.Generator().manual_seed(1)
    moved = {k: v + 0.1 * torch.randn(v.shape, generator=draw) * ("lora_B" in k) for k, v in state.items()}
    save_file(moved, adapter / "adapter_model.safetensors", {"format": "pt"})
    return adapter


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """The base, and the run folders of two rounds; what the second one said."""
    folder = tmp_path_factory.mktemp("rounds")
    base = save_tiny(folder / "my-model", "qwen")
    rows = ["--negatives", jsonl(folder / "bad.jsonl", BAD)]
    rows += ["--preferences", jsonl(folder / "pairs.jsonl", PAIRS), "--lora-rank", "2"]
    rows += ["--outer-steps", "1", "--measurements", "1", "--max-repetition-rise", "1"]
    model, said = base, ""
    for name in ("first", "second"):
        options = ["--model", str(model), "--output", str(folder / name), *rows]
        done = CliRunner().invoke(app, ["align", *options])
        assert done.exit_code in (0, 1), done.output + done.stderr
        model, said = strengthened(folder / name / "adapter"), done.stderr
    return base, folder / "first", folder / "second", said


def test_the_cards_code_loads_what_was_trained(rounds):
    base, first, second, _ = rounds
    truth = logits(load_policy(second / "adapter", lora_rank=0).model)
    (code,) = re.findall(r"^```python\n(.*?)^```$", (second / "README.md").read_text(), re.S | re.M)
    places = {
        "path/of/the/original/model": base,
        "first/adapter": first / "adapter",
        "adapter": second / "adapter",
    }
    assert set(re.findall(r'"(.*?)"', code)) == set(places)
    for name, place in places.items():
        code = code.replace(f'"{name}"', f'"{place}"')
    names = {}
    exec(compile(code, "the card", "exec"), names)
    torch.testing.assert_close(logits(names["model"]), truth, atol=1e-4, rtol=1e-4)
    wrong = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), second / "adapter"))
    assert (wrong - truth).abs().max() > 1e-2  # without the first adapter it is another model


def test_align_says_so_beforehand(rounds):
    base, first, second, said = rounds
    assert f"the original model is itself an adapter, {first / 'adapter'}" in " ".join(said.split())
    assert "--merge also writes one whole model" in " ".join(said.split())
    card = (second / "adapter" / "README.md").read_text()
    assert "is itself an adapter, on which this one was trained: first/adapter." in card
    assert str(base.parent) not in card
    assert "itself an adapter" not in (first / "README.md").read_text()


def test_what_a_model_is_made_of(rounds, tmp_path):
    base, _, second, _ = rounds
    assert below(str(second / "adapter")) == (str(base), ["first/adapter", "second/adapter"])
    assert below(str(base)) == (str(base), [])
    assert below("demo") == ("demo", [])
    (tmp_path / "adapter_config.json").write_text("[]")
    assert below(str(tmp_path)) == (str(tmp_path), [])


def test_a_trainers_adapter_on_an_adapter_names_it(rounds, tmp_path):
    """PEFT noted the whole model below, on which it is another model."""
    _, first, _, _ = rounds
    trainer = UnlearnTrainer(
        model=str(first / "adapter"),
        args=U2AConfig(str(tmp_path / "out"), report_to="none", max_steps=1, use_cpu=True),
        train_dataset=load_negatives(BAD),
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((first / "adapter").resolve())
    found = logits(load_policy(tmp_path / "out", lora_rank=0).model)
    torch.testing.assert_close(found, logits(trainer.model), atol=1e-4, rtol=1e-4)
