"""Fingerprints of a problem's texts and of a model: kept work of others is not gone on with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from u2a.problem import Problem

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLE = 4096
"""Elements of each tensor that a model's fingerprint looks at: training changes nearly all of them."""


def fingerprint(problem: Problem) -> str:
    """Changes when a token of some negative, validation or retain text does, or where its response begins; or
    a prior weight, or the objective or one of its options."""
    digest = hashlib.sha256(np.asarray(problem.prior, dtype=np.float64).tobytes())
    digest.update(described(problem.objective).encode())
    for texts in (
        problem.negative_texts,
        problem.objective.texts,
        problem.utility.texts,
        problem.retain_texts,
        None if problem.joint is None else problem.joint.texts,
    ):
        digest.update(digest_of_texts(texts).encode())
    return digest.hexdigest()


def digest_of_texts(texts: Dataset | None) -> str:
    """Changes when a token does, or where a response begins; `none` where there are none."""
    if texts is None:
        return "none"
    digest = hashlib.sha256()
    for ids, start in zip(texts["input_ids"], texts["response_start"], strict=True):
        digest.update(np.asarray([len(ids), start, *ids], dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def described(objective: object) -> str:
    """The objective's class, what the user chose of it, and the seed of what it draws, if it has one."""
    options = dataclasses.fields(objective) if dataclasses.is_dataclass(objective) else ()
    values = (str(getattr(objective, f.name)) for f in options if "help" in f.metadata)
    seed = getattr(objective, "seed", None)
    drawn = [] if seed is None else [f"seed {seed}"]
    return " ".join([type(objective).__name__, *filter(None, values), *drawn])


def digest_of(weights: np.ndarray | None) -> str:
    """Changes when a number does; `none` where there are none."""
    if weights is None:
        return "none"
    return hashlib.sha256(np.asarray(weights, np.float64).tobytes()).hexdigest()[:16]


def named(part: object) -> str:
    """A loss or a curvature with its options, the same in every process."""
    held = getattr(part, "__dict__", {})
    options = {name: value for name, value in held.items() if isinstance(value, (str, int, float))}
    return json.dumps([type(part).__name__, options])


def fingerprint_of_model(model: nn.Module) -> str:
    """Changes when the weights do, those of adapters too; the same on any device, with any number of threads.

    Of each tensor it reads at most about `SAMPLE` elements, spread evenly: all would take minutes where the
    model is large. Parameters must be whole: a sharded model has none that one process could read.
    """
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        flat = p.detach().reshape(-1)
        few = flat[:: max(1, flat.numel() // SAMPLE)].cpu().contiguous()
        digest.update(f"{name} {p.dtype} {tuple(p.shape)}".encode())
        digest.update(few.view(torch.uint8).numpy().data)
    return digest.hexdigest()
