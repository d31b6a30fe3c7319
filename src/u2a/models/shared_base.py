"""Adapters beside the model that they were trained on: its weights are in memory once."""

from __future__ import annotations

import copy
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, PeftModel, PeftType

from u2a.models.adapter_kinds import spares_base
from u2a.models.demo_model import demo_model
from u2a.models.loading import LOADING_ERRORS, load_tokenizer, quiet_transformers
from u2a.models.merging import quiet_peft
from u2a.models.policy import Policy, ensure_pad_token
from u2a.models.source import ModelSource, adapter_base, check_source

if TYPE_CHECKING:
    from torch import nn


def policy_beside(base: Policy, source: str | Path, *, trust_remote_code: bool = False) -> Policy | None:
    """The adapter at `source` on the weights of `base`, which stays what it is; frozen, in eval mode.

    Args:
        base: without an adapter, as `load_policy(…, lora_rank=0)` gives it; its weights are shared, so
            whoever changes them changes both.
        source: what to load.

    Returns:
        None where it must be loaded whole: it is no adapter folder, its base is another model, or it does
        more than add to the outputs of layers (then loading it could change the weights it shares).
    """
    found = check_source(source, trust_remote_code=trust_remote_code)
    if found.kind != "adapter" or base.has_adapter:
        return None
    theirs = check_source(adapter_base(found.folder), trust_remote_code=trust_remote_code)
    if _place(theirs) != _place(check_source(base.source, trust_remote_code=trust_remote_code)):
        return None
    tokenizer = load_tokenizer(found, trust_remote_code=trust_remote_code)
    rows = base.model.get_input_embeddings().num_embeddings
    if max(tokenizer.get_vocab().values()) >= rows or not _only_adds(found.folder):
        return None
    twin = _twin(base.model)
    try:
        with quiet_transformers(), quiet_peft():
            model = PeftModel.from_pretrained(twin, str(found.folder))
    except LOADING_ERRORS:
        return None  # loaded whole it fails with words
    ensure_pad_token(tokenizer, twin)
    return Policy(model.requires_grad_(False).eval(), tokenizer, True, found.name)


def _place(source: ModelSource) -> Path | str:
    """Where the model lies, by which two names of it are told to be the same."""
    path = demo_model() if source.kind == "demo" else source.path
    return source.name if path is None else path.resolve()


def _only_adds(adapter: Path) -> bool:
    """Whether it is a LoRA adapter that leaves all of its base's own parameters alone, also while loading:
    PiSSA and the like subtract from them, `bias` writes to them, other kinds put modules in their place."""
    config: Any = PeftConfig.from_pretrained(str(adapter))
    return (
        config.peft_type == PeftType.LORA
        and spares_base(config)
        and config.bias == "none"
        and not any(
            getattr(config, key, None)
            for key in ("modules_to_save", "trainable_token_indices", "target_parameters")
        )
    )


def _twin(model: nn.Module) -> Any:
    """A model of the same layers around the same tensors: what is put on one is not on the other."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)
