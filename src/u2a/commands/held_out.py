"""The held-out pairs of `u2a align`: which of them are held out indeed, and the figures on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from u2a.commands.session import Data
    from u2a.commands.terminal import Bars
    from u2a.problem import Problem


def keep_held_out(data: Data) -> None:
    """Leaves test pairs out of `data` whose prompts are among the validation rows or the negatives: a figure
    on those shows nothing of other prompts. Says how many; without any left there are no held-out figures."""
    if data.test is None:
        return
    met = {
        "validation rows": prompt_keys(data.preferences),
        "negatives": prompt_keys(data.negatives),
    }
    keys = row_prompt_keys(data.test)
    kept = [at for at, key in enumerate(keys) if not any(key in each for each in met.values())]
    left_out = len(keys) - len(kept)
    if not left_out:
        return
    with_whom = " or ".join(name for name, each in met.items() if not each.isdisjoint(keys))
    none = "" if kept else ", and there are no held-out figures"
    data.warnings.append(
        f"{left_out} of {len(keys)} held-out pairs share prompts with the {with_whom}: left out{none}; give "
        "pairs of other prompts by --test (`u2a split` cuts a file by prompt)"
    )
    data.test = data.test.select(kept) if kept else None


def prompt_keys(rows: Dataset) -> set[bytes]:
    """What tells the prompts apart (`prompt_key`); rows without a prompt have none."""
    return {key for key in row_prompt_keys(rows) if key}


def row_prompt_keys(rows: Dataset) -> list[bytes]:
    """The same for each row; empty for one without a prompt."""
    from u2a.data.validate import prompt_key

    blocks = rows.select_columns(["prompt"]).iter(1000)
    return [prompt_key(prompt) if prompt else b"" for block in blocks for prompt in block["prompt"]]


def held_out_values(problem: Problem, data: Data, bars: Bars) -> dict[str, np.ndarray] | None:
    """What each held-out pair contributes to the figures on them; None without such pairs."""
    if data.test is None:
        return None
    import torch

    from u2a.evaluation.preference import pair_values
    from u2a.validation import pair_texts

    texts, _ = pair_texts(data.test, problem.renderer)
    with bars.task("held-out pairs", len(texts)) as progress:
        s = problem.logprobs(texts, progress)
    return pair_values(s, torch.tensor(texts["n_tokens"]))
