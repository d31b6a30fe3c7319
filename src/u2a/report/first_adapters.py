"""The adapters that an original model is made of, where it is no whole model: further rounds of `align`."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from u2a.report.wording import is_hub_id, public_value

_MOST = 16
"""Adapters on adapters that are followed."""


class Below(NamedTuple):
    """`base` is the whole model at the bottom; `adapters`, as a card names them, are put on it, merged, one
    after another."""

    base: str
    adapters: list[str]


def below(model: str) -> Below:
    """What the original model `model` is made of; without adapters `base` is the model itself."""
    found: list[str] = []
    while len(found) < _MOST and (folder := _adapter_folder(model)) is not None:
        with suppress(OSError, ValueError, AttributeError):
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            if isinstance(base := config.get("base_model_name_or_path"), str) and base:
                found.insert(0, _shown(model))
                model = base
                continue
        break
    return Below(model, found)


def _adapter_folder(model: str) -> Path | None:
    folder = Path(model).expanduser()
    if (folder / "adapter_config.json").is_file():
        return folder
    if folder.exists() or not is_hub_id(model):
        return None
    from transformers.utils.peft_utils import find_adapter_config_file

    with suppress(OSError, ValueError):  # one of the Hub lies in its cache by now
        config = find_adapter_config_file(model, local_files_only=True)
        return Path(config).parent if config else None
    return None


def _shown(model: str) -> str:
    """A Hub id, or the folder's last name; that of a run's `adapter/` with the run's name, all having one."""
    if is_hub_id(model) and not Path(model).exists():
        return model
    path = Path(model).expanduser().resolve()
    name = f"{path.parent.name}/{path.name}" if path.name == "adapter" else str(public_value(path.name))
    return re.sub(r"[^\w ./@+-]", "_", name)
