"""From validation rows to J: tokens, reference log-probs, and who may be trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from u2a.data.collate import tokenize_pairs, tokenize_rows
from u2a.data.render import is_cut_of
from u2a.data.scratch import no_progress_bars
from u2a.data.validate import prompt_key
from u2a.objectives import MeanLogProb, Objective, Reward, objective_class
from u2a.objectives.preference import Preference
from u2a.types import UserError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import Tensor

    from u2a.data.render import Renderer
    from u2a.scorers import Scorer
    from u2a.types import Message

    Prompt = Sequence[Message]


def objective_of_rows(
    name: str | type,
    options: dict[str, Any],
    rows: Dataset,
    renderer: Renderer,
    measured: Callable[[Dataset], Tensor],
    *,
    scorer: Scorer | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Objective | Reward, Any]:
    """The objective, and the tokenised preferred texts it holds: None where rows have none.

    Args:
        name: in `OBJECTIVES`, or a class of the user's own, made with the pairs' `texts` (the chosen ones
            first) and `reference`.
        measured: log-probs of tokenised texts under the original model.
        scorer, seed, device: of the objective `reward`.

    Raises:
        UserError: no such objective, or its options or rows are unusable.
    """
    if name == "nll":
        texts = tokenize_rows(rows, renderer, role="preferences")
        return MeanLogProb(texts), texts
    if name == "reward":
        return Reward.of_rows(rows, renderer, scorer, device=device, seed=seed, **options), None
    kind = objective_class(name) if isinstance(name, str) else name
    texts, chosen = pair_texts(rows, renderer, role="preferences")
    objective = kind(texts=texts, reference=measured(texts), **options)
    shape = objective.terms(objective.reference.double()).shape
    if len(shape) != 1 or not shape[0]:
        raise UserError(
            f"--objective {kind.__name__}: terms must give some values in a row, got {tuple(shape)}"
        )
    return objective, chosen


def pair_texts(pairs: Dataset, renderer: Renderer, *, role: str = "") -> tuple[Dataset, Dataset]:
    """P pairs as 2P tokenised texts, the chosen ones first, and the chosen ones alone.

    Both answers of a pair follow the same prompt: where the longer one leaves it less room, that is what the
    shorter one gets too. Else a margin would compare answers to two questions. `role` is for warnings.
    """
    from datasets import concatenate_datasets

    chosen, rejected = tokenize_pairs(pairs, renderer, role=role)
    texts = concatenate_datasets([chosen, rejected])
    shorter = _cut_prompts(texts)
    if not shorter:
        return texts, chosen

    def with_one_prompt(text: dict[str, Any], position: int) -> dict[str, Any]:
        ids, start = text["input_ids"], text["response_start"]
        prompt = shorter.get(position, ids[:start])
        return {"input_ids": [*prompt, *ids[start:]], "response_start": len(prompt)}

    with no_progress_bars():
        texts = texts.map(with_one_prompt, with_indices=True)
    return texts, texts.select(range(len(chosen)))


def _cut_prompts(texts: Dataset) -> dict[int, list[int]]:
    """Positions of texts whose prompt was cut less than that of the other answer to it -> the shorter one."""
    starts = np.asarray(texts["response_start"]).reshape(2, -1)
    found = {}
    for pair in np.flatnonzero(starts[0] != starts[1]).tolist():
        places = sorted((pair, pair + starts.shape[1]), key=lambda i: starts.flat[i])
        short, long = (texts[i]["input_ids"][: starts.flat[i]] for i in places)
        # what else may differ is a scaffold at the end, which one of the answers brings itself
        if is_cut_of(short, long):
            found[places[1]] = short
    return found


def shared_out(
    objective: Preference, prompts: Sequence[Prompt], share: float
) -> tuple[Preference, Preference]:
    """J on the pairs of a share of the prompts, at least one, for training, and J on the pairs of the others.

    Which prompts is a matter of their text alone, so it does not change with the order of the rows.

    Args:
        prompts: one for each of the P pairs, in the objective's order.

    Raises:
        UserError: all pairs have one prompt.
    """
    keys = [prompt_key(prompt) for prompt in prompts]
    order = sorted(set(keys))  # keys are hashes: any order of them is a random one
    if len(order) < 2:
        raise UserError("--joint shares validation pairs out by prompt, and all of them have the same one")
    taken = set(order[: min(len(order) - 1, max(1, round(share * len(order))))])

    def part(inside: bool) -> Preference:
        pairs = [i for i, key in enumerate(keys) if (key in taken) is inside]
        texts = [*pairs, *(i + len(keys) for i in pairs)]
        return replace(objective, texts=objective.texts.select(texts), reference=objective.reference[texts])

    return part(True), part(False)
