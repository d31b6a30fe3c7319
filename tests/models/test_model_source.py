"""What a model's name stands for, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

import cases
from u2a.models.source import BIDIRECTIONAL, check_source, refuse_other_models
from u2a.types import UserError


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}))


def adapter(folder: Path, base: str | None) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    edit_json(folder / "adapter_config.json", base_model_name_or_path=base, peft_type="LORA")
    return folder


def test_kinds(model_folder: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF\x03\x00")
    lora = adapter(tmp_path / "lora", str(model_folder))
    found = {
        str(source): check_source(source).kind
        for source in ("demo", str(model_folder), lora, gguf, "gpt2", "org/name-1.5B")
    }
    assert list(found.values()) == ["demo", "folder", "adapter", "gguf", "hub", "hub"]


def test_a_run_folder_names_the_model_in_it(model_folder: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "run" / "adapter", str(model_folder))
    (tmp_path / "run" / "config.yaml").write_text("model: x")
    with pytest.raises(UserError) as caught:
        check_source(tmp_path / "run")
    assert f"whose model is {tmp_path / 'run' / 'adapter'}: give that" in str(caught.value)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"is not a model folder$"):
        check_source(tmp_path / "other")


@pytest.mark.parametrize("source", ["./nothing", "/no/such/folder", "a/b/c", "missing.gguf", ""])
def test_missing_source(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = "no config.json" if source == "" else "no such folder or file"
    with pytest.raises(UserError, match=message):
        check_source(source)


def test_folder_that_is_no_model_points_to_a_gguf_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"no config.json.*a\.gguf"):
        check_source(tmp_path)


def test_file_that_is_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="not a GGUF file"):
        check_source(tmp_path / "a.gguf")


def test_missing_tokenizer(model_folder: Path) -> None:
    (model_folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer.*copy the tokenizer files"):
        check_source(model_folder)


def test_pickled_weights_are_refused(model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model.bin\).*safetensors"):
        check_source(model_folder)


def test_no_weights(model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights \(model.safetensors\)"):
        check_source(model_folder)


def test_sharded_weights_are_weights(model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "model-00001-of-00001.safetensors")
    edit_json(model_folder / "model.safetensors.index.json", weight_map={})
    assert check_source(model_folder).kind == "folder"


def test_code_of_the_model_runs_only_when_trusted(model_folder: Path) -> None:
    edit_json(model_folder / "config.json", model_type="mine", auto_map={"AutoConfig": "configuration.Mine"})
    with pytest.raises(UserError, match=r"runs Python code.*--trust-remote-code"):
        check_source(model_folder)
    assert check_source(model_folder, trust_remote_code=True).kind == "folder"
    edit_json(model_folder / "config.json", model_type="llama")  # transformers has this one itself
    assert check_source(model_folder).kind == "folder"


def test_encoder_decoder(model_folder: Path) -> None:
    edit_json(model_folder / "config.json", is_encoder_decoder=True)
    with pytest.raises(UserError, match="encoder-decoder"):
        check_source(model_folder)


@pytest.mark.parametrize(
    "kind", ["LlamaForSequenceClassification", "BertForMaskedLM", "LlamaModel", "LlamaForTokenClassification"]
)
def test_models_without_the_head_of_a_language_model(model_folder: Path, tmp_path: Path, kind: str) -> None:
    edit_json(model_folder / "config.json", architectures=[kind])
    with pytest.raises(UserError, match=rf"its class is {kind}; u2a needs a causal language"):
        check_source(model_folder)
    with pytest.raises(UserError, match=f"base model of the adapter .*{kind}"):
        check_source(adapter(tmp_path / "lora", str(model_folder)))


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": None},
        {"architectures": ["MyLlamaForCausalLM"]},
        {"architectures": ["LlamaModel", "LlamaForCausalLM"]},
        {"architectures": ["ChatGLMModel"], "auto_map": {"AutoModelForCausalLM": "modeling.ChatGLM"}},
    ],
)
def test_language_models_by_other_names_pass(model_folder: Path, changes: dict[str, Any]) -> None:
    edit_json(model_folder / "config.json", **changes)
    assert check_source(model_folder).kind == "folder"


def test_every_causal_class_of_transformers_passes() -> None:
    for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        key, value = BIDIRECTIONAL.get(kind, ("is_decoder", False))
        refuse_other_models("x", {"model_type": kind, "architectures": [name], key: value})
    for name in {*MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()} - {
        *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    }:
        with pytest.raises(UserError, match=name):
            refuse_other_models("x", {"architectures": [name]})


def test_kinds_that_see_the_whole_text_at_once() -> None:
    """Those of which transformers makes both: a model that fills gaps and one that goes on with a text."""
    both = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    assert both <= set(BIDIRECTIONAL)
    named = {"model_type": "roberta", "architectures": ["RobertaForCausalLM"]}
    for more in ({}, {"is_decoder": False}):
        with pytest.raises(UserError, match=r"kind roberta sees the whole text.*no `is_decoder: true`"):
            refuse_other_models("x", {**named, **more})
    refuse_other_models("x", {**named, "is_decoder": True})


def test_adapters_of_other_tasks(model_folder: Path, tmp_path: Path) -> None:
    lora = adapter(tmp_path / "lora", str(model_folder))
    edit_json(lora / "adapter_config.json", task_type="SEQ_CLS")
    with pytest.raises(UserError, match=r"the adapter is of the task SEQ_CLS.*CAUSAL_LM"):
        check_source(lora)
    edit_json(lora / "adapter_config.json", task_type="CAUSAL_LM")
    assert check_source(lora).kind == "adapter"


@pytest.mark.parametrize("content", ["{", "[]"])
def test_broken_config(model_folder: Path, content: str) -> None:
    (model_folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        check_source(model_folder)


def test_adapter_problems_name_the_adapter(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no base model"):
        check_source(adapter(tmp_path / "none", None))
    with pytest.raises(UserError, match=r"base model of the adapter .*gone.*no such folder"):
        check_source(adapter(tmp_path / "gone", "/no/such/base"))
    with pytest.raises(UserError, match="names the adapter itself"):
        check_source(adapter(tmp_path / "self", str(tmp_path / "self")))
    pickled = adapter(tmp_path / "pickled", str(model_folder))
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(UserError, match=r"only pickled weights \(adapter_model.bin\)"):
        check_source(pickled)


def test_every_family_passes(family: str, tmp_path: Path) -> None:
    assert check_source(cases.save_tiny(tmp_path / family, family)).kind == "folder"


@pytest.mark.parametrize("key", ["attn_implementation", "experts_implementation"])
def test_code_on_the_hub_is_not_fetched_for_a_configuration(model_folder: Path, key: str) -> None:
    """transformers would load compiled code from there (`kernels`), without asking."""
    edit_json(model_folder / "config.json", **{key: "evil/kernel"})
    with pytest.raises(UserError, match=r"config\.json names code on the Hub to be run \(evil/kernel\)"):
        check_source(str(model_folder))
    check_source(str(model_folder), trust_remote_code=True)
    edit_json(model_folder / "config.json", **{key: "eager"})
    check_source(str(model_folder))


def test_a_configuration_nested_too_deeply_is_refused(model_folder: Path) -> None:
    (model_folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="not valid JSON"):
        check_source(str(model_folder))
