"""What a model's name stands for (folder, adapter, GGUF file, Hub id, `demo`), checked before loading."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from u2a.storage.links import refuse_links_out
from u2a.types import UserError

KINDS = ("demo", "folder", "adapter", "gguf", "hub")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)

BIDIRECTIONAL = {
    **dict.fromkeys(
        (
            "bart", "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
            "mbart", "megatron-bert", "mvp", "reformer", "rembert", "roberta", "roberta-prelayernorm",
            "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
        ),
        ("is_decoder", True),
    ),
    "xlm": ("causal", True),
    "xlnet": ("attn_type", "uni"),
}  # fmt: skip
"""Kinds of models that transformers loads as language models though they see what comes after a token, unless
the configuration has this key with this value."""

_CAUSAL = re.compile("ForCausalLM|LMHead|ForConditionalGeneration|BertGenerationDecoder")
"""In the names of the classes that have the head of a language model."""
_OTHER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM")
"""Tasks of PEFT's adapters that are none of a causal language model."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class ModelSource:
    """`kind` is one of `KINDS`; `path` is the folder or file, None for `hub` and `demo`."""

    name: str
    kind: str
    path: Path | None = None

    @property
    def folder(self) -> Path:
        """The path of a kind that has one."""
        if self.path is None:
            raise ValueError(f"{self.name} is not on disk")
        return self.path


def check_source(source: str | Path, *, trust_remote_code: bool = False) -> ModelSource:
    """Says what `source` is, after a cheap look at the files; nothing is loaded or downloaded.

    Args:
        source: a folder, a PEFT adapter folder, a GGUF file, a Hub id, or `demo`.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        UserError: no such folder; no config, weights or tokenizer in it; pickled weights; a link that leads
            out of it; a model that needs code of its own without `trust_remote_code`; one that is no causal
            language model; a file that is not GGUF; an adapter without its base.
    """
    name = str(source)
    path = Path(source).expanduser()
    if name == "demo":
        return ModelSource(name, "demo")
    if path.is_file():
        return ModelSource(name, "gguf", _checked_gguf(path))
    if path.is_dir():
        refuse_links_out(path, below=("additional_chat_templates",))
        if (path / "adapter_config.json").is_file():
            _check_adapter(path, trust_remote_code)
            return ModelSource(name, "adapter", path)
        _check_folder(path, trust_remote_code)
        return ModelSource(name, "folder", path)
    if isinstance(source, str) and _HUB_ID.fullmatch(name) and path.suffix != ".gguf":
        return ModelSource(name, "hub")
    raise UserError(
        f"{name}: no such folder or file; give a folder, a Hub id (org/name), a GGUF file, or `demo`"
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer could be loaded from the folder."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _checked_gguf(path: Path) -> Path:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise UserError(f"{path} is a file but not a GGUF file; give the folder of a model, or a GGUF file")
    return path


def _check_folder(folder: Path, trust_remote_code: bool) -> None:
    if not (folder / "config.json").is_file():
        inside = sorted(folder.glob("*.gguf"))
        hint = f"; give the file itself: {inside[0]}" if inside else _made_by_a_run(folder)
        raise UserError(f"{folder} has no config.json and so is not a model folder{hint}")
    config = _json(folder / "config.json")
    refuse_kernels(str(folder), config, trust_remote_code)
    if "auto_map" in config and not trust_remote_code and not _is_native(config):
        raise UserError(
            f"{folder}: this model runs Python code that comes with it (auto_map in config.json). "
            "Read that code; if you trust it, use --trust-remote-code"
        )
    refuse_other_models(str(folder), config)
    check_weights(folder, "model")
    if not has_tokenizer(folder):
        raise UserError(
            f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES[:3])}, …): copy the tokenizer files of "
            "the model it was made from into it, or save the tokenizer beside the model with save_pretrained"
        )


def _made_by_a_run(folder: Path) -> str:
    """Of a run folder of `u2a align`, which many take for the model that it made: where that one is."""
    found = [folder / name for name in ("adapter", "model", "merged")]
    models = [str(each) for each in found if _holds_model(each)]
    return f"; it is a run's, whose model is {' or '.join(models)}: give that" if models else ""


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("adapter_config.json", "config.json"))


def refuse_kernels(name: str, config: dict[str, Any], trust_remote_code: bool) -> None:
    """Refuses a configuration that has transformers load compiled code from the Hub (`org/kernel`).

    Raises:
        UserError: it names such code, and that is not trusted.
    """
    named = [str(config.get(key) or "") for key in ("attn_implementation", "experts_implementation")]
    if any("/" in each for each in named) and not trust_remote_code:
        raise UserError(
            f"{name}: its config.json names code on the Hub to be run ({', '.join(filter(None, named))}). "
            "Remove the key, or use --trust-remote-code if you trust it"
        )


def refuse_other_models(name: str, config: dict[str, Any]) -> None:
    """Refuses a configuration that is not of a causal language model, as far as it says so.

    Raises:
        UserError: it is an encoder-decoder model, one without the head of a language model, or one that sees
            what comes after a token.
    """
    if config.get("is_encoder_decoder"):
        raise UserError(f"{name} is an encoder-decoder model; u2a needs a causal language model")
    found = config.get("architectures") or []
    kinds = [str(kind) for kind in found] if isinstance(found, list) else [str(found)]
    own = config.get("auto_map")
    named = isinstance(own, dict) and "AutoModelForCausalLM" in own
    if kinds and not named and not any(map(_CAUSAL.search, kinds)):
        raise UserError(
            f"{name}: its class is {', '.join(kinds)}; u2a needs a causal language model "
            "(…ForCausalLM). A reward model goes to --objective-reward-model; if this one does have the head "
            "of a language model, name its class in `architectures`"
        )
    key, value = BIDIRECTIONAL.get(str(config.get("model_type")), ("", None))
    if key and config.get(key) != value:
        raise UserError(
            f"{name}: a model of the kind {config['model_type']} sees the whole text at once, and its "
            f"config.json has no `{key}: {json.dumps(value)}`; u2a needs a causal language model, which "
            "reads from left to right"
        )


def _is_native(config: dict[str, Any]) -> bool:
    """Whether transformers itself has this architecture, so that the model's own code is not needed."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def check_weights(folder: Path, stem: str) -> None:
    """Looks for a folder's weights; `stem` is `model` or `adapter_model`.

    Raises:
        UserError: they are pickled or absent.
    """
    names = (f"{stem}.safetensors", f"{stem}.safetensors.index.json")
    if any((folder / name).is_file() for name in names):
        return
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickles:
        raise UserError(
            f"{folder} has only pickled weights ({pickles[0].name}), which can run code when loaded. "
            "Get the safetensors version, or load it where you trust it and save_pretrained it again"
        )
    raise UserError(f"{folder} has no weights ({names[0]})")


def _check_adapter(folder: Path, trust_remote_code: bool) -> None:
    base = adapter_base(folder)
    check_weights(folder, "adapter_model")
    if Path(base).expanduser().resolve() == folder.resolve():
        raise UserError(f"{folder}/adapter_config.json names the adapter itself as its base model")
    try:
        check_source(base, trust_remote_code=trust_remote_code)
    except UserError as error:
        raise UserError(
            f"the base model of the adapter {folder} (base_model_name_or_path): {error}"
        ) from error


def adapter_base(folder: Path) -> str:
    """The base model that an adapter folder names.

    Raises:
        UserError: it names none, or the adapter is for another task.
    """
    config = _json(folder / "adapter_config.json")
    if config.get("task_type") in _OTHER_TASKS:
        raise UserError(
            f"{folder}/adapter_config.json: the adapter is of the task {config['task_type']}, and u2a needs "
            "one of a causal language model (CAUSAL_LM)"
        )
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{folder}/adapter_config.json names no base model: write it into base_model_name_or_path"
        )
    return str(base)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return content
