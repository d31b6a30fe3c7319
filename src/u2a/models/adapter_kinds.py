"""Which adapters leave the weights that they are put on alone: with them off the model is the original."""

from __future__ import annotations

from typing import Any

from u2a.types import UserError

_SPARES_BASE = {
    "ADALORA", "BOFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "OFT", "PREFIX_TUNING",
    "PROMPT_TUNING", "P_TUNING", "RANDLORA", "VERA",
}  # fmt: skip
"""Kinds of PEFT that tests compare with their base, the adapter off. Of others nothing is known."""


def spares_base(config: Any) -> bool:
    """Whether an adapter of this PEFT configuration leaves its base's own weights and layers alone when it is
    made: PiSSA, OLoRA and the like take their first A and B out of the base, which the adapter switched off
    does not give back, and `layer_replication` repeats layers."""
    return (
        _kind(config) in _SPARES_BASE
        and getattr(config, "init_lora_weights", True) in (True, False, "gaussian")
        and not getattr(config, "layer_replication", None)
    )


def refuse_changed_base(model: Any) -> None:
    """Refuses a PEFT model that, its adapter off, is not known to be the original; others pass.

    Raises:
        UserError: names the adapter and what of it is the matter.
    """
    for name, config in getattr(model, "peft_config", {}).items():
        if not spares_base(config):
            raise UserError(
                f"the adapter {name!r} ({_words(config)}) is not known to leave the weights of its base "
                "alone, so with the adapter off the model need not be the original, which the loss or the kl "
                "term compares with: take a LoRA adapter with init_lora_weights=True, or give UnlearnTrainer "
                "a copy of the original as reference_model"
            )


def _kind(config: Any) -> str:
    kind = config.peft_type
    return str(getattr(kind, "value", kind))


def _words(config: Any) -> str:
    """`LORA with init_lora_weights='pissa'`."""
    shown = [
        f"{key}={value!r}"
        for key, plain in (("init_lora_weights", (True, False, "gaussian")), ("layer_replication", (None,)))
        if (value := getattr(config, key, plain[0])) not in plain
    ]
    return " with ".join([_kind(config), *filter(None, [", ".join(shown)])])
