"""Checkpoints of `UnlearnTrainer`: no pickles of state, and a resumed run makes the very same steps."""

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import TrainerCallback

from cases import tiny_model, tiny_policy, tiny_tokenizer
from problems import BAD, GOOD, answers
from u2a.models.policy import add_adapter
from u2a.trainer import U2AConfig, UnlearnTrainer


class _Stop(TrainerCallback):
    def __init__(self, at):
        self.at = at

    def on_step_end(self, _args, state, control, **_):
        control.should_training_stop |= state.global_step == self.at
        return control


def _args(folder, **options):
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return U2AConfig(str(folder), learning_rate=1e-2, per_device_train_batch_size=2, **quiet, **options)


def _trainer(folder, stop=0, **options):
    policy = tiny_policy("llama", dtype=torch.float32)
    for module in policy.model.modules():
        if isinstance(module, LoraLayer):  # so that random states matter
            module.lora_dropout["default"] = torch.nn.Dropout(0.2)
    args = _args(folder, num_train_epochs=3, retain_loss="nll", save_steps=1, **options)
    return UnlearnTrainer(
        model=policy.model,
        args=args,
        train_dataset=answers(BAD),
        retain_dataset=answers(GOOD),
        processing_class=policy.tokenizer,
        callbacks=[_Stop(stop)],
    )


@pytest.mark.parametrize(
    ("step", "options"),
    [(2, {}), (3, {}), (5, {"gradient_accumulation_steps": 1, "lr_scheduler_type": "cosine"})],
    ids=["within a pass", "between passes", "cosine"],
)
def test_resumed_equals_uninterrupted(tmp_path, step, options):
    whole = _trainer(tmp_path / "whole", **options)
    whole.train()
    _trainer(tmp_path / "cut", stop=step, **options).train()
    folder = tmp_path / "cut" / f"checkpoint-{step}"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"optimizer.safetensors", "rng_state.json"}
    assert not names & {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    resumed = _trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=str(folder))
    assert resumed.state.global_step == whole.state.global_step == 9
    for (name, p), (_, q) in zip(
        whole.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        assert torch.equal(p, q), name


def _l2_trainer(folder, adapter, stop=0, **options):
    """A trainer with the l2 term, of an adapter whose A is drawn from that seed."""
    tokenizer = tiny_tokenizer("llama")
    return UnlearnTrainer(
        model=add_adapter(tiny_model("llama", tokenizer=tokenizer), rank=2, seed=adapter),
        args=_args(folder, max_steps=6, retain_loss="l2", save_steps=3),
        train_dataset=answers(BAD),
        processing_class=tokenizer,
        callbacks=[_Stop(stop)],
        **options,
    )


def test_the_l2_term_of_a_resumed_run_holds_phi_where_the_run_began(tmp_path):
    whole = _l2_trainer(tmp_path / "whole", adapter=1)
    whole.train()
    _l2_trainer(tmp_path / "cut", adapter=1, stop=3).train()
    resumed = _l2_trainer(tmp_path / "cut", adapter=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    for (name, p), (_, q) in zip(
        whole.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        assert torch.equal(p, q), name
    assert whole._beside.retain_loss(whole.model, {}) == resumed._beside.retain_loss(resumed.model, {})


def test_a_start_that_is_given_is_not_kept_again(tmp_path, caplog):
    start = {n: p.detach().clone() for n, p in _l2_trainer(tmp_path, adapter=1).model.named_parameters()}
    _l2_trainer(tmp_path, adapter=1, stop=3, l2_start=start).train()
    assert not (tmp_path / "checkpoint-3" / "l2_start.safetensors").exists()
    _l2_trainer(tmp_path, adapter=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert "has no l2_start.safetensors" in caplog.text
