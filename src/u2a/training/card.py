"""`README.md` of what `UnlearnTrainer` saves: a model card with settings and figures, and no text of rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from peft import PeftModel

from u2a.logprobs import unwrapped
from u2a.storage.files import write_text

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
CITATION = """```bibtex
@inproceedings{feng2026leveraging,
  title         = {Leveraging Machine Unlearning for Cost-Efficient Preference Alignment},
  author        = {Feng, Xiaohua and Li, Yuyuan and Ji, Huwei and Zhang, Jiaming and Zhang, Li and
                   Du, Tianyu and Chen, Chaochao},
  booktitle     = {International Conference on Machine Learning (ICML)},
  year          = {2026},
  eprint        = {2504.06659},
  archivePrefix = {arXiv},
  url           = {https://arxiv.org/abs/2504.06659}
}
```
"""


def write_card(trainer: Any, base: str | None, header: Mapping[str, Any], tags: Sequence[str]) -> None:
    """Writes the card into the trainer's output folder, in the place of one that is there.

    Args:
        base: the model that was trained; default the name it was loaded by. Only an id of the Hub is shown.
        header: further fields of its YAML, such as `license`; None = not known. tags: besides u2a's own.
    """
    model = unwrapped(trainer.model)
    base = base or str(model.config.name_or_path)
    shown = base if _HUB_ID.fullmatch(base) and not Path(base).exists() else None
    peft = isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)
    selected, negatives = int(np.count_nonzero(trainer.weights)), len(trainer.weights)
    lines = [
        "---",
        _header(shown, peft, header, tags),
        "---",
        "",
        "# Unlearned with u2a",
        "",
        f"{'An adapter for' if peft else 'Made from'} {shown or 'a model that is not on the Hub'} by "
        "`UnlearnTrainer` of [u2a](https://arxiv.org/abs/2504.06659): "
        f"{selected} of {negatives} bad answers, those of positive weight, were made less likely.",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in _settings(trainer).items()),
        "",
        *_last_logged(trainer.state.log_history),
        "Unlearning makes the given answers less likely. It does not prove that the knowledge behind them is "
        "gone, and it does not make a model safe by itself: evaluate before use. The licence of the original "
        "model applies.",
        "",
        f"u2a {version('u2a')}, transformers {version('transformers')}, torch {version('torch')}.",
        "",
        "## Citation",
        "",
        CITATION,
    ]
    write_text(Path(trainer.args.output_dir) / "README.md", "\n".join(lines))


def _header(base: str | None, peft: bool, more: Mapping[str, Any], tags: Sequence[str]) -> str:
    fields = {
        "library_name": "peft" if peft else "transformers",
        "pipeline_tag": "text-generation",
        "base_model": base,
        "base_model_relation": base and ("adapter" if peft else "finetune"),
        **more,
        "tags": list(dict.fromkeys(["u2a", "unlearning", *tags])),
    }
    kept = {name: value for name, value in fields.items() if value}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).strip()


def _settings(trainer: Any) -> dict[str, Any]:
    args = trainer.args
    return {
        "loss": repr(trainer.loss),
        "retain term": f"{args.retain_loss}, weight {args.retain_weight:g}",
        "weight of the preference pairs": args.joint_weight,
        "learning rate": args.learning_rate,
        "optimiser steps": trainer.state.global_step,
        "negatives in a step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "seed": args.seed,
    }


def _last_logged(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures of the last step that was logged, and of the whole run."""
    figures = {k: v for line in history for k, v in line.items() if isinstance(v, int | float)}
    if not figures:
        return []
    rows = [f"| {_cell(name)} | {value:.4g} |" for name, value in figures.items()]
    return ["| last logged | value |", "|---|---:|", *rows, ""]


def _cell(value: Any) -> str:
    return re.sub(r"[|`<>\n\r]", " ", str(value))
