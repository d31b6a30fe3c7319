"""Kinds of PEFT adapters: those that are taken as leaving their base alone do."""

import peft
import pytest
import torch

from cases import tiny_model
from u2a.models.adapter_kinds import refuse_changed_base, spares_base
from u2a.types import UserError

IDS = torch.arange(4, 16).reshape(2, 6)
ON = {"target_modules": ["q_proj", "v_proj"]}
SOFT = {"num_virtual_tokens": 2}
SPARING = [
    peft.LoraConfig(init_lora_weights=init, **ON, **more)
    for init, more in (
        (True, {}),
        (False, {}),
        ("gaussian", {}),
        (True, {"use_dora": True}),
        (True, {"modules_to_save": ["lm_head"]}),
    )
] + [
    peft.AdaLoraConfig(total_step=10, **ON),
    peft.BOFTConfig(boft_block_size=4, **ON),
    peft.HRAConfig(**ON),
    peft.IA3Config(feedforward_modules=[], **ON),
    peft.LNTuningConfig(target_modules=["input_layernorm"]),
    peft.LoHaConfig(**ON),
    peft.LoKrConfig(**ON),
    peft.OFTConfig(oft_block_size=4, **ON),
    peft.RandLoraConfig(**ON),
    peft.VeraConfig(**ON),
    peft.PrefixTuningConfig(**SOFT),
    peft.PromptTuningConfig(**SOFT),
    peft.PromptEncoderConfig(**SOFT),
]
CHANGING = [
    peft.LoraConfig(init_lora_weights="pissa", **ON),
    peft.LoraConfig(init_lora_weights="olora", **ON),
    peft.LoraConfig(layer_replication=[(0, 1), (0, 2)], **ON),
]


def changed(config):
    """Largest difference of the logits with the adapter off, its parameters moved, from the base's."""
    config.task_type = "CAUSAL_LM"
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model("llama"), config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
        with model.disable_adapter():
            off = model(input_ids=IDS).logits
        return float((off - tiny_model("llama").eval()(input_ids=IDS).logits).abs().max()), model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", SPARING, ids=lambda config: config.peft_type.value)
def test_what_spares_its_base_does(config):
    difference, model = changed(config)
    assert difference == 0
    assert spares_base(config)
    refuse_changed_base(model)


@pytest.mark.parametrize("config", CHANGING, ids=lambda c: f"{c.init_lora_weights}-{c.layer_replication}")
def test_what_changes_its_base_is_refused(config):
    difference, model = changed(config)
    assert difference > 1e-3
    assert not spares_base(config)
    with pytest.raises(UserError, match=r"the adapter 'default' .LORA with (init_lora|layer_rep).*reference"):
        refuse_changed_base(model)


def test_of_other_kinds_nothing_is_known():
    assert not spares_base(peft.PolyConfig(**ON))
    with pytest.raises(UserError, match=r"'default' .POLY."):
        refuse_changed_base(type("Model", (), {"peft_config": {"default": peft.PolyConfig(**ON)}}))
    refuse_changed_base(object())
