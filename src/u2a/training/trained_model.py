"""The model that a trainer is given, by name or in hand, as it will be trained."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from u2a.logprobs import unwrapped
from u2a.models.loading import load_source
from u2a.models.source import check_source, refuse_other_models
from u2a.types import UserError

if TYPE_CHECKING:
    from peft import PeftConfig


def trained_model(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, peft_config: PeftConfig | None, seed: int = 0
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model, loaded in float32 if it is a name, in a new adapter if it gets one; and its tokenizer.

    Args:
        seed: of what a new adapter draws, LoRA's A; the global random state is left alone.

    Raises:
        UserError: there is no such model or tokenizer, it is no causal language model, it has an adapter
            already and would get another, or nothing of it is trained.
    """
    if peft_config is not None and _has_adapter(model):
        raise UserError(
            "the model has an adapter already, which peft_config would overwrite: merge it first "
            "(model.merge_and_unload()), or leave peft_config out to train that adapter"
        )
    source = check_source(model) if isinstance(model, str) else None
    if source is not None:
        model, found = load_source(source, dtype=torch.float32, trust_remote_code=False)
        tokenizer = tokenizer or found
    base = unwrapped(model)
    if type(base).__module__.startswith("transformers."):  # of others nothing is known
        kind = type(base).__name__
        refuse_other_models(f"model, a {kind}", {**base.config.to_dict(), "architectures": [kind]})
    if tokenizer is None:
        if not base.config.name_or_path:
            raise UserError(
                "processing_class is missing: a model in hand does not say which tokenizer it has"
            )
        tokenizer = AutoTokenizer.from_pretrained(base.config.name_or_path)
    if peft_config is not None:
        from peft import get_peft_model

        peft_config.task_type = peft_config.task_type or "CAUSAL_LM"  # what AutoPeftModel looks for
        devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT's own calls of transformers
                model = get_peft_model(model, peft_config)
        if source is not None and source.path is not None:
            # PEFT would note the base of an adapter that was merged, and so other weights than were trained
            model.peft_config["default"].base_model_name_or_path = str(source.path.resolve())
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(
            "nothing of the model is trained, no parameter has requires_grad: load an adapter with "
            "PeftModel.from_pretrained(..., is_trainable=True), or give peft_config for a new one"
        )
    return model, tokenizer


def _has_adapter(model: Any) -> bool:
    """Whether PEFT's layers are in the model, its own wrapper around it or not."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, str):  # that of an adapter's folder is merged when it is loaded
        return False
    return isinstance(model, PeftModel) or any(isinstance(m, BaseTunerLayer) for m in model.modules())
