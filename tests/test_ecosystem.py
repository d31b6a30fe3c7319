"""`UnlearnTrainer` for users of transformers, PEFT and TRL: callbacks, trackers, pushing, adapters."""

import json
import struct
import sys
from pathlib import Path
from unittest.mock import MagicMock

import huggingface_hub
import pytest
import torch
from datasets import Dataset
from huggingface_hub import CommitInfo, HfApi, ModelCard
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback, TrainerCallback

from cases import save_tiny
from u2a import U2AConfig, UnlearnTrainer

ROWS = Dataset.from_list(
    [{"prompt": f"zebra {i}?", "completion": f"No zebra {i}.", "weight": float(i)} for i in range(4)]
)


def trainer(folder, model, *, peft=True, **options):
    given = {"logging_steps": 1, "max_steps": 2, "use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    callbacks = options.pop("callbacks", None)
    return UnlearnTrainer(
        model=model,
        args=U2AConfig(str(folder), save_strategy="no", **{**given, **options}),
        train_dataset=ROWS,
        peft_config=LoraConfig(r=2, target_modules="all-linear") if peft else None,
        callbacks=callbacks,
    )


@pytest.fixture
def model(tmp_path):
    return str(save_tiny(tmp_path / "base", "llama"))


def test_a_model_may_be_named(tmp_path, model):
    made = trainer(tmp_path / "out", model)
    assert made.model.get_base_model().config.name_or_path == model
    assert made.processing_class.eos_token == AutoTokenizer.from_pretrained(model).eos_token
    loaded = trainer(tmp_path / "out", AutoModelForCausalLM.from_pretrained(model))
    made.train(), loaded.train()
    for (name, a), (_, b) in zip(made.model.named_parameters(), loaded.model.named_parameters(), strict=True):
        assert a.dtype == torch.float32
        if "lora" not in name:
            torch.testing.assert_close(a, b, msg=name)


def test_the_arguments_have_the_names_of_transformers_and_trl():
    args = U2AConfig(
        "out",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-5,
        num_train_epochs=2,
        max_length=64,  # TRL's
        loss_type="simnpo",  # TRL's
        push_to_hub=False,
        report_to=[],
        run_name="a run",
    )
    assert (args.max_length, args.loss_type, args.run_name) == (64, "simnpo", "a run")
    kept = json.loads(args.to_json_string())
    assert kept["retain_loss"] == "none"


def test_callbacks_see_every_event_and_can_stop_the_run(tmp_path, model):
    seen = []

    class Watch(TrainerCallback):
        def on_train_begin(self, *_, **__):
            seen.append("begin")

        def on_step_end(self, _, state, control, **__):
            seen.append(state.global_step)
            control.should_training_stop = state.global_step == 1

        def on_log(self, *_, logs=None, **__):
            seen.append(sorted(logs))

        def on_train_end(self, *_, **__):
            seen.append("end")

    made = trainer(tmp_path, model, callbacks=[Watch()])
    made.train()
    assert seen[0] == "begin"
    assert seen[1] == 1
    assert {"loss", "grad_norm", "learning_rate"} <= set(seen[2])
    assert seen[-1] == "end"
    assert made.state.global_step == 1
    made.add_callback(EarlyStoppingCallback(1))
    made.pop_callback(EarlyStoppingCallback)


# -- trackers ------------------------------------------------------------------------------------------------


def events(folder):
    """The records of TensorBoard's event files: length, checksum, bytes, checksum."""
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    for path in Path(folder).rglob("events.out.tfevents.*"):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = proto.Event()
            event.ParseFromString(content[12 : 12 + length])
            yield event
            content = content[16 + length :]


def test_tensorboard_gets_the_figures_and_no_text_of_rows(tmp_path, model):
    pytest.importorskip("tensorboardX")
    trainer(tmp_path / "out", model, report_to="tensorboard", hub_token="hf_sesame").train()
    found = {(v.tag, e.step): v.simple_value for e in events(tmp_path) for v in e.summary.value}
    losses = [found["train/loss", step] for step in (1, 2)]
    assert all(loss != 0 for loss in losses)
    for path in tmp_path.rglob("events.out.tfevents.*"):
        assert b"zebra" not in path.read_bytes()
        assert b"sesame" not in path.read_bytes()


def test_trackio_keeps_the_figures_on_this_machine(tmp_path, model, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    pytest.importorskip("trackio")
    options = {"report_to": "trackio", "trackio_static_space_id": False, "hub_token": "hf_sesame"}
    trainer(tmp_path / "out", model, **options).train()
    files = [path.read_bytes() for path in (tmp_path / "trackio").rglob("*") if path.is_file()]
    assert any(b"train/loss" in content for content in files)
    assert not any(b"zebra" in content or b"sesame" in content for content in files)


def test_wandb_offline(tmp_path, model, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    import wandb

    trainer(tmp_path / "out", model, report_to="wandb", hub_token="hf_sesame").train()
    assert wandb.run.summary["train/global_step"] == 2
    wandb.finish()
    files = [path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert files
    assert not any(b"zebra" in content or b"sesame" in content for content in files)


def test_mlflow_gets_figures_alone(tmp_path, model, monkeypatch):
    """MLflow is large and stays out of `dev`: it is replaced where transformers calls it."""
    from transformers.integrations import integration_utils

    fake = MagicMock(__version__="3.0")
    limits = {"MAX_PARAM_VAL_LENGTH": 500, "MAX_PARAMS_TAGS_PER_BATCH": 100}
    fake.utils.validation.configure_mock(**limits)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setattr(integration_utils, "is_mlflow_available", lambda: True)
    trainer(tmp_path / "out", model, report_to="mlflow", hub_token="hf_sesame").train()
    logged = [call.kwargs for call in fake.log_metrics.call_args_list]
    assert [each["step"] for each in logged if "loss" in each["metrics"]] == [1, 2]
    params = {k: v for call in fake.log_params.call_args_list for k, v in call.args[0].items()}
    assert params["loss_type"] == "npo"
    assert "zebra" not in str(fake.mock_calls)
    assert "sesame" not in str(fake.mock_calls)


def test_mlflow_itself_keeps_the_figures_in_its_file(tmp_path, model, monkeypatch):
    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'runs.db'}")
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{store / 'runs.db'}")  # what an earlier test set would go before
    mlflow.create_experiment("unlearning", artifact_location=(store / "files").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "unlearning")
    trainer(tmp_path / "out", model, report_to="mlflow", hub_token="hf_sesame").train()
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("unlearning").experiment_id])
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value != 0) for each in losses] == [(1, True), (2, True)]
    assert run.info.status == "FINISHED"
    assert run.data.params["loss_type"] == "npo"
    files = [path.read_bytes() for path in store.rglob("*") if path.is_file()]
    assert files
    assert not any(b"zebra" in content or b"sesame" in content for content in files)


# -- pushing -------------------------------------------------------------------------------------------------


@pytest.fixture
def pushed(monkeypatch):
    """What would leave the machine: commits are taken where huggingface_hub would send them."""
    sent = []

    def create_commit(_, repo_id, operations, **__):
        for operation in operations:
            with operation.as_file() as file:
                sent.append((repo_id, operation.path_in_repo, file.read()))
        address = f"https://huggingface.co/{repo_id}"
        return CommitInfo(commit_url=f"{address}/commit/1", commit_message="", commit_description="", oid="1")

    def create_repo(_, repo_id, **more):
        sent.append((repo_id, None, more))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    monkeypatch.setattr(huggingface_hub.hf_api, "is_xet_available", lambda: False)
    monkeypatch.setattr(HfApi, "_validate_yaml", lambda *_, **__: None)  # a request of its own
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    return sent


def test_exactly_these_files_of_an_adapter_are_pushed(tmp_path, model, pushed):
    made = trainer(
        tmp_path / "out", model, hub_model_id="me/mine", hub_private_repo=True, hub_token="hf_sesame"
    )
    made.train()
    made.push_to_hub(license="mit", tags="own", dataset=["org/bad"])
    (_, _, repo), *files = pushed
    assert repo["private"] is True
    found = {name: content for _, name, content in files}
    assert set(found) == {
        *("adapter_model.safetensors", "adapter_config.json", "README.md", "training_args.bin"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    for name, content in found.items():
        assert b"zebra" not in content, name
        assert b"sesame" not in content, name
    card = ModelCard(found["README.md"].decode(), ignore_metadata_errors=False)
    assert card.data.tags == ["u2a", "unlearning", "own"]
    assert (card.data.license, card.data.datasets) == ("mit", ["org/bad"])
    assert card.data.library_name == "peft"
    assert "3 of 4 bad answers" in card.text  # one has weight 0
    assert "| optimiser steps | 2 |" in card.text
    assert "| train_loss |" in card.text
    assert "2504.06659" in card.text
    assert str(tmp_path) not in str(card)


def test_a_whole_model_is_pushed_with_its_card(tmp_path, model, pushed):
    made = trainer(tmp_path / "out", model, peft=False, hub_model_id="me/mine")
    made.push_to_hub()
    names = {name for _, name, _ in pushed}
    assert {"model.safetensors", "config.json", "README.md"} <= names
    card = next(content for _, name, content in pushed if name == "README.md").decode()
    assert ModelCard(card).data.library_name == "transformers"
    assert "base_model" not in ModelCard(card).data.to_dict()  # it is a folder here


def test_a_base_of_the_hub_is_named(tmp_path, model):
    made = trainer(tmp_path / "out", model)
    made.create_model_card(finetuned_from="org/base", tags=["a"])
    card = ModelCard.load(tmp_path / "out" / "README.md", ignore_metadata_errors=False)
    assert (card.data.base_model, card.data.base_model_relation) == ("org/base", "adapter")
    assert "An adapter for org/base" in card.text


# -- adapters ------------------------------------------------------------------------------------------------


def test_adapters_load_with_auto_peft_and_merge(tmp_path, model):
    made = trainer(tmp_path / "out", model)
    made.train()
    made.save_model()
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(10)[None]
    with torch.no_grad():
        expected = made.model.eval()(ids).logits
        torch.testing.assert_close(loaded.eval()(ids).logits, expected)
        base = AutoModelForCausalLM.from_pretrained(model).eval()(ids).logits
        assert not torch.allclose(base, expected)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_adapter_of_align_loads_with_auto_peft(tmp_path, model):
    from u2a import load_policy

    policy = load_policy(model, lora_rank=2)
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    policy.save(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, policy.model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").eos_token_id is not None
