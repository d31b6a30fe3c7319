"""Impacts and weights of a run as a `datasets.Dataset`, for other trainers; and rows drawn by weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from u2a.data.as_text import as_text
from u2a.data.load import load_negatives
from u2a.storage.links import refuse_links_out
from u2a.storage.plain_yaml import plain_values
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from u2a.data.sources import Given

SCORES = ("impact", "impact_se", "utility_cost", "loss", "n_tokens", "cosine", "grad_norm")
WEIGHTS = ("weight", "selected")


def weighted_negatives(run: Path | str, negatives: Given | None = None) -> Dataset:
    """The negatives of a run of `u2a align` or `u2a impact` with what it found, as TRL's conversational rows.

    Columns: `row`, `id`; `prompt` and `completion`, lists of messages; `label`, false (KTO's undesirable);
    `impact` (> 0: unlearning it raises J), `impact_se`, `utility_cost`, `loss`, `n_tokens`, `cosine`,
    `grad_norm` (null where the run did not measure it); of an `align` run also `weight` (0 = not selected,
    mean 1 over the selected) and `selected`. It holds the rows' text: pushed, it should be private.

    Args:
        run: the run folder. negatives: the rows the run was made with; default the source that its
            config.yaml names.

    Raises:
        UserError: no such run, or the rows are no longer those that were scored; says which.

    Example:
        >>> import tempfile
        >>> from u2a import align, load_negatives, load_policy, load_preferences, prepare, tiny_model
        >>> from u2a.data.weighted_rows import weighted_rows
        >>> bad = load_negatives([{"prompt": "Hello!", "completion": "Go away."}])
        >>> pairs = load_preferences([{"prompt": "Tea?", "chosen": "Yes, please.", "rejected": "No."}])
        >>> problem = prepare(load_policy(tiny_model(), lora_rank=2), negatives=bad, preferences=pairs)
        >>> result = align(problem)  # of a run folder: weighted_negatives("runs/align")
        >>> rows = weighted_rows(bad, {"impact": result.impact.impact, "weight": result.weights})
        >>> rows[0]["completion"]
        [{'role': 'assistant', 'content': 'Go away.'}]
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; name the folder that --output made")
    refuse_links_out(folder)
    scored = _table(folder / "impact.parquet")
    rows = load_negatives(_source(folder) if negatives is None else negatives)
    _refuse_others(rows, scored, folder)
    found = {name: scored[name] for name in SCORES if name in scored}
    if (folder / "weights.parquet").is_file():
        weights = _table(folder / "weights.parquet")
        found |= {name: weights[name] for name in WEIGHTS}
    return weighted_rows(rows, found)


def weighted_rows(negatives: Dataset, columns: dict[str, Any]) -> Dataset:
    """Canonical negatives as TRL's conversational rows, with these columns (N,) beside them."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "row": negatives["row"][:],
            "id": negatives["id"][:],
            "prompt": negatives["prompt"][:],
            "completion": [[{"role": "assistant", "content": text}] for text in negatives["response"]],
            "label": [False] * len(negatives),
            **{name: list(values) for name, values in columns.items()},
        }
    )


def drawn_by_weight(rows: Dataset, *, size: int | None = None, seed: int = 0) -> Dataset:
    """Rows in proportion to their column `weight`, for trainers that know no weights per example.

    In expectation over seeds row i comes size·ω_i/Ω times, so that a trainer's mean over the drawn rows is
    (1/Ω)·Σ ω_i·ℓ_i, as in u2a; in each draw it comes that often, rounded up or down (systematic resampling:
    one draw of a comb's offset, hence the least variance). The order is shuffled.

    Args:
        size: how many; default as many as have a weight above 0.

    Raises:
        UserError: no column `weight`, or one that is negative, not finite, or 0 everywhere.

    Example:
        >>> from datasets import Dataset
        >>> from u2a import drawn_by_weight
        >>> rows = Dataset.from_dict({"id": ["a", "b", "c"], "weight": [2.0, 0.0, 1.0]})
        >>> sorted(drawn_by_weight(rows, size=3)["id"])
        ['a', 'a', 'c']
    """
    if "weight" not in rows.column_names:
        raise UserError("the rows have no column weight: take them from a run of `u2a align`")
    weights = np.asarray(rows["weight"], np.float64)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad) or not weights.any():
        where = f"row {bad[0]} has the weight {weights[bad[0]]}" if len(bad) else "every weight is 0"
        raise UserError(f"{where}: weights must be finite, not negative, and one of them above 0")
    return rows.select(_systematic(weights, size or int(np.count_nonzero(weights)), seed))


def _systematic(weights: NDArray[np.float64], size: int, seed: int) -> NDArray[np.int64]:
    draw = np.random.default_rng(seed)
    marks = np.cumsum(weights) / weights.sum()
    comb = (np.arange(size) + draw.random()) / size
    # the last mark may round to just under 1
    found = np.minimum(np.searchsorted(marks, comb, side="right"), np.flatnonzero(weights)[-1])
    return draw.permutation(found)


def _table(path: Path) -> dict[str, list[Any]]:
    try:
        return pq.read_table(path).to_pydict()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {path.parent} is no finished run of align or impact") from None
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise UserError(f"{path}: not what a run writes ({error}); write the run again") from None


def _source(run: Path) -> str:
    path = run / "config.yaml"
    try:
        source = (plain_values(path.read_text(encoding="utf-8")) or {}).get("negatives")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not what a run writes ({error}); give negatives") from None
    if not isinstance(source, str) or source in ("", "-"):
        raise UserError(f"{path} names no file of negatives: give negatives, the rows the run was made with")
    return source


def _refuse_others(rows: Dataset, scored: dict[str, list[Any]], run: Path) -> None:
    """Rows by prompt and response: a row that moved or changed would get another one's weight, and responses
    alone repeat, as stock refusals do."""
    if len(rows) != len(scored["response"]):
        raise UserError(
            f"there are {len(rows)} negatives now and {len(scored['response'])} in {run}: give negatives, "
            "the rows the run was made with"
        )
    present = zip(map(as_text, rows["prompt"]), rows["response"], strict=True)
    before = zip(scored["prompt"], scored["response"], strict=True)
    for row, (now, then) in enumerate(zip(present, before, strict=True)):
        if now != then:
            raise UserError(f"negative {row + 1} is not the one that was scored in {run}: give negatives")
