"""From a checked source to a model and its tokenizer: safetensors only, adapters merged, GGUF dequantised.

PEFT and the models of transformers are imported where a model is loaded: whoever wants a tokenizer alone
(`u2a check --model`) does not wait for them. torch comes with transformers' tokenizers all the same.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from u2a.models.source import (
    ModelSource,
    adapter_base,
    check_source,
    has_tokenizer,
    refuse_kernels,
    refuse_other_models,
)
from u2a.types import UserError

_OTHER_HEADS = ("score", "classifier", "classification_head", "qa_outputs")
"""What transformers calls the heads of models that classify."""
LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def load_source(source: ModelSource, **options: Any) -> tuple[Any, Any]:
    """The model, without an adapter of ours, and its tokenizer.

    Args:
        source: from `check_source`, of any kind but `demo`.
        options: for `AutoModelForCausalLM.from_pretrained`; `trust_remote_code` goes to the tokenizer too.

    Raises:
        UserError: transformers cannot load it, some of its weights are absent, an adapter cannot be merged,
            or the tokenizer has more tokens than the model has embeddings.
    """
    import torch

    try:
        with quiet_transformers():
            model, tokenizer = _load(source, options)
    except torch.OutOfMemoryError:
        raise
    except LOADING_ERRORS as error:
        where = "neither a folder here nor a model the Hub gives; " if source.kind == "hub" else ""
        raise UserError(
            f"{source.name}: {where}it cannot be loaded as a causal language model: {error}"
        ) from error
    rows = model.get_input_embeddings().num_embeddings
    beyond = {i for i in tokenizer.get_vocab().values() if i >= rows}
    if beyond == {tokenizer.pad_token_id}:
        tokenizer.pad_token = tokenizer.eos_token  # padded positions are embedded too, though masked
    elif beyond:
        raise UserError(
            f"{source.name}: the tokenizer has {len(beyond)} tokens for which the model has no embedding "
            f"(it has {rows}); they do not belong together"
        )
    return model, tokenizer


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer alone, without the model.

    Args:
        source: from `check_source`, of any kind but `demo`.

    Raises:
        UserError: there is none, or transformers cannot load it.
    """
    name, options = str(source.path or source.name), {"trust_remote_code": trust_remote_code}
    try:
        with quiet_transformers():
            if source.kind == "gguf":
                gguf = source.folder
                return _gguf_tokenizer(gguf)
            if source.kind == "adapter" and not has_tokenizer(source.folder):
                base = check_source(adapter_base(source.folder), trust_remote_code=trust_remote_code)
                return load_tokenizer(base, trust_remote_code=trust_remote_code)
            return AutoTokenizer.from_pretrained(name, **options)
    except LOADING_ERRORS as error:
        raise UserError(f"{source.name}: its tokenizer cannot be loaded: {error}") from error


def _load(source: ModelSource, options: dict[str, Any]) -> tuple[Any, Any]:
    from transformers.utils.peft_utils import find_adapter_config_file

    if source.kind == "gguf":
        gguf = source.folder
        model = load_gguf(gguf, **options)
        tokenizer = _gguf_tokenizer(gguf)
        _drop_invented(tokenizer, model.get_input_embeddings().num_embeddings)
        return model, tokenizer
    if source.kind == "hub" and (config := find_adapter_config_file(source.name)):
        return _load_adapter(source.name, adapter_base(Path(config).parent), options)
    if source.kind == "adapter":
        return _load_adapter(str(source.path), adapter_base(source.folder), options)
    return _load_folder(str(source.path or source.name), options)


def _gguf_tokenizer(gguf: Path) -> Any:
    return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)


def _load_folder(name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """A folder or a Hub id."""
    from transformers import AutoModelForCausalLM, PretrainedConfig

    config, _ = PretrainedConfig.get_config_dict(name)
    refuse_kernels(name, config, options["trust_remote_code"])
    refuse_other_models(name, config)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        name, use_safetensors=True, output_loading_info=True, **options
    )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{name} lacks the weights of {len(missing)} tensors, such as {missing[0]}, and they would be "
            "random: get the whole model"
        )
    heads = sorted(key for key in report["unexpected_keys"] if key.split(".")[0] in _OTHER_HEADS)
    if heads:
        raise UserError(
            f"{name} has the head of a model that classifies ({heads[0]}), which would be dropped: u2a needs "
            "a causal language model"
        )
    return model, AutoTokenizer.from_pretrained(name, trust_remote_code=options["trust_remote_code"])


def _load_adapter(name: str, base: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """The base of an adapter with the adapter merged in; the adapter's own tokenizer if it has one."""
    from peft import PeftModel

    from u2a.models.merging import merged, quiet_peft

    trust = options["trust_remote_code"]
    model, tokenizer = _load(check_source(base, trust_remote_code=trust), options)
    if not Path(name).is_dir() or has_tokenizer(Path(name)):
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
        except OSError:
            pass  # an adapter on the Hub without a tokenizer
        else:
            if len(tokenizer) > model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(len(tokenizer))
    _refuse_pickled(name)
    with quiet_peft():
        wrapped: Any = PeftModel.from_pretrained(model, name)
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise UserError(f"{name}: an adapter of type {wrapped.peft_type} cannot be merged into its base")
    return merged(wrapped), tokenizer


def _refuse_pickled(adapter: str) -> None:
    """PEFT falls back to a pickle where there is no safetensors file, and has no option against it."""
    from transformers.utils.hub import has_file

    if Path(adapter).is_dir() or has_file(adapter, "adapter_model.safetensors"):
        return
    raise UserError(
        f"{adapter} has no adapter_model.safetensors; pickled weights, which can run code when loaded, are "
        "not read"
    )


def _drop_invented(tokenizer: Any, embeddings: int) -> None:
    """transformers gives every byte-level GGUF tokenizer an `<|endoftext|>`, also when the model has none."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = [token for token in content["added_tokens"] if token["id"] < embeddings]
    if len(kept) < len(content["added_tokens"]):
        content["added_tokens"] = kept
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))


def load_gguf(gguf: Path, **options: Any) -> Any:
    """The dequantised model of a GGUF file; `options` go to `from_pretrained`."""
    from transformers import AutoModelForCausalLM

    with redirect_stderr(io.StringIO()):  # its progress bar obeys no setting
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, **options)
    # It holds plain floats now; these three would have transformers treat it as quantised.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no chatter of transformers within; errors are raised, not printed."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
