"""The model that `UnlearnTrainer` is given, with and without adapters of its own."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForSequenceClassification, T5Config, T5ForConditionalGeneration

from cases import tiny_model, tiny_tokenizer
from u2a.losses import NPO, GradientAscent
from u2a.models.policy import Policy
from u2a.passes.dataset import dataset_logprobs
from u2a.trainer import U2AConfig, UnlearnTrainer
from u2a.types import UserError

ROWS = [{"prompt": f"Question {i}?", "completion": "No. " * (1 + i % 3)} for i in range(4)]


def lora(**options):
    return LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)


def base(dtype=torch.float64):
    return tiny_model("llama", dtype=dtype)


def learned(model):
    """Every trained parameter away from where it was drawn."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def trainer(tmp_path, model, loss=None, seed=0, args=None, **options):
    plain = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return UnlearnTrainer(
        model=model,
        args=args or U2AConfig(str(tmp_path), seed=seed, **plain),
        loss=loss or NPO(),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_tokenizer("llama"),
        **options,
    )


def trained_names(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def logprobs(made, model):
    return dataset_logprobs(model, made._negatives, max_tokens=512, pad_token_id=0)


def test_a_new_adapter_never_takes_an_old_ones_place(tmp_path):
    sft = learned(get_peft_model(base(), lora()))
    before = {name: p.clone() for name, p in sft.named_parameters()}
    for model in (sft, sft.base_model.model):  # with PEFT's wrapper and without
        with pytest.raises(UserError, match=r"has an adapter already.*merge_and_unload\(\)"):
            trainer(tmp_path, model, peft_config=lora())
    assert all(torch.equal(p, before[name]) for name, p in sft.named_parameters())
    merged = sft.merge_and_unload()
    made = trainer(tmp_path, merged, peft_config=lora())
    torch.testing.assert_close(made._reference_logprobs, logprobs(made, made.model))


def test_the_reference_of_an_adapter_that_has_learned_is_its_base(tmp_path):
    made = trainer(tmp_path, learned(get_peft_model(base(), lora())))
    torch.testing.assert_close(made._reference_logprobs, logprobs(made, base()))


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("in_hand", [True, False])
def test_an_adapter_that_changed_its_base_is_no_reference(tmp_path, init, in_hand):
    """PiSSA and OLoRA take the first A and B out of the base: what is left with them off is another model."""
    config = lora(init_lora_weights=init)

    def made(loss, **more):
        model = get_peft_model(base(torch.float32), config) if in_hand else base(torch.float32)
        return trainer(tmp_path, model, loss, peft_config=None if in_hand else config, **more)

    kl = U2AConfig(str(tmp_path), retain_loss="kl", use_cpu=True, report_to="none", disable_tqdm=True)
    for more in ({}, {"loss": GradientAscent(), "args": kl, "retain_dataset": Dataset.from_list(ROWS)}):
        with pytest.raises(UserError, match=rf"LORA with init_lora_weights='{init}'.*reference_model"):
            made(**{"loss": NPO(), **more})
    given = made(NPO(), reference_model=base(torch.float32))
    torch.testing.assert_close(given._reference_logprobs, logprobs(given, base(torch.float32)))
    made(GradientAscent())  # compares with nothing


def test_a_policy_whose_adapter_changed_its_base_has_no_reference():
    model = get_peft_model(base(torch.float32), lora(init_lora_weights="pissa"))
    with pytest.raises(UserError, match="is not known to leave"), Policy(model, None, True, "").reference():
        pass


def two_adapters():
    """`sft`, frozen, and `u2a`, trained, both active."""
    model = learned(get_peft_model(base(), lora(), adapter_name="sft"))
    model.add_adapter("u2a", lora())
    model.base_model.set_adapter(["sft", "u2a"])
    for name, p in model.named_parameters():
        p.requires_grad_(".u2a." in name)
    return model


def test_several_active_adapters_are_no_reference(tmp_path):
    model = two_adapters()
    with pytest.raises(UserError, match=r"several adapters are active \(sft, u2a\).*merge"):
        trainer(tmp_path, model)
    assert all(".u2a." in name for name in trained_names(model))
    assert len(trainer(tmp_path, model, GradientAscent()).weights) == 4  # which needs none


def test_a_reference_model_that_has_an_adapter_is_taken_with_it(tmp_path):
    original = learned(get_peft_model(base(), lora(), adapter_name="sft")).requires_grad_(False)
    made = trainer(tmp_path, two_adapters(), reference_model=original)
    torch.testing.assert_close(made._reference_logprobs, logprobs(made, original))
    assert all(".u2a." in name for name in trained_names(made.model))


@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias")
@pytest.mark.parametrize("bias", ["none", "all"])
def test_a_base_that_is_trained_too_is_no_reference_of_the_kl_term(tmp_path, bias):
    """PEFT's `disable_adapter` leaves what it learned in place."""
    model = get_peft_model(tiny_model("qwen"), lora(bias=bias))
    if bias == "none":
        model.base_model.model.model.norm.weight.requires_grad_(True)
    args = U2AConfig(str(tmp_path), retain_loss="kl", use_cpu=True, report_to="none", disable_tqdm=True)
    rest = {"train_dataset": Dataset.from_list(ROWS), "processing_class": tiny_tokenizer("qwen")}
    rest["retain_dataset"] = Dataset.from_list([{"prompt": "Hi", "completion": "Hello."}])
    with pytest.raises(UserError, match=r"besides the adapter's are trained.*give reference_model"):
        UnlearnTrainer(model=model, args=args, **rest)
    assert UnlearnTrainer(model=model, args=args, reference_model=tiny_model("qwen"), **rest).train()
    made = UnlearnTrainer(
        model=model,
        args=U2AConfig(str(tmp_path / "npo"), max_steps=1, use_cpu=True),
        **rest | {"retain_dataset": None},
    )
    made.train()  # s_ref of its rows was measured before
    with pytest.raises(UserError, match="which training has changed"):
        made.evaluate(Dataset.from_list(ROWS[:2]))


def test_modules_to_save_are_part_of_the_adapter(tmp_path):
    model = get_peft_model(base(), lora(modules_to_save=["lm_head"]))
    args = U2AConfig(str(tmp_path), retain_loss="kl", max_steps=1, use_cpu=True, report_to="none")
    made = UnlearnTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(ROWS),
        retain_dataset=Dataset.from_list([{"prompt": "Hi", "completion": "Hello."}]),
        processing_class=tiny_tokenizer("llama"),
    )
    made.train()
    torch.testing.assert_close(made._reference_logprobs, logprobs(made, base()))


def test_measuring_the_reference_leaves_frozen_what_was_frozen(tmp_path):
    """PEFT's `disable_adapter` makes all of the active adapter trainable."""
    model = get_peft_model(base(), lora())
    for name, p in model.named_parameters():
        p.requires_grad_("lora_B" in name)
    before = trained_names(model)
    made = trainer(tmp_path, model)
    assert trained_names(made.model) == before


def test_a_model_of_which_nothing_is_trained_is_refused(tmp_path):
    get_peft_model(base(), lora()).save_pretrained(tmp_path / "adapter")
    frozen = PeftModel.from_pretrained(base(), tmp_path / "adapter")
    for loss in (NPO(), GradientAscent()):
        with pytest.raises(UserError, match="is_trainable=True"):
            trainer(tmp_path, frozen, loss)
    assert not trained_names(frozen)
    trained = PeftModel.from_pretrained(base(), tmp_path / "adapter", is_trainable=True)
    assert trained_names(trainer(tmp_path, trained).model)


def test_a_new_adapter_is_drawn_from_the_seed_of_the_arguments(tmp_path):
    def drawn(seed, elsewhere):
        torch.manual_seed(elsewhere)
        made = trainer(tmp_path, base(), seed=seed, peft_config=lora())
        return torch.cat([p.flatten() for n, p in made.model.named_parameters() if "lora_A" in n])

    assert torch.equal(drawn(7, 1), drawn(7, 2))
    assert not torch.equal(drawn(7, 1), drawn(8, 1))


def test_a_model_in_hand_that_is_no_causal_language_model_is_refused(tmp_path):
    config = base().config
    reward = LlamaForSequenceClassification(config)
    sizes = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "vocab_size": 64}
    for model, words in (
        (reward, "its class is LlamaForSequenceClassification"),
        (T5ForConditionalGeneration(T5Config(**sizes)), "encoder-decoder"),
    ):
        with pytest.raises(UserError, match=words):
            trainer(tmp_path, model)


def test_a_model_in_hand_without_a_tokenizer_is_refused(tmp_path):
    model = base()
    model.config.name_or_path = ""
    with pytest.raises(UserError, match="processing_class is missing"):
        UnlearnTrainer(model, U2AConfig(str(tmp_path)), train_dataset=Dataset.from_list(ROWS))


def test_texts_longer_than_the_positions_are_refused(tmp_path):
    args = U2AConfig(str(tmp_path), use_cpu=True, report_to="none", max_length=4096)
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    with pytest.raises(UserError, match="max-length 4096: the model has"):
        UnlearnTrainer(model, args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)
