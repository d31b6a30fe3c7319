"""The figures of an `evaluate` run: for each model, which changes from the original are beyond noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from u2a.report.figure import Cell, Plot, named_bars, plain, vertical, word
from u2a.report.record import DISTANCE, Row, interval, number_or_nan, parsed, read_file
from u2a.report.wording import NOTHING, excerpt, number, visible
from u2a.types import UserError

LONGEST_BAR = 10.0
"""Changes longer than this are drawn as long as this."""

_WORDS = {
    "accuracy": "held-out accuracy, summed",
    "accuracy_per_token": "held-out accuracy, per token",
    "margin": "held-out margin, summed",
    "margin_per_token": "held-out margin, per token",
    "chosen_logprob": "log-prob of held-out chosen",
    "rejected_logprob": "log-prob of held-out rejected",
    "negative_logprob": "log-prob of the negatives",
    "negative_extracted": "negatives: tokens guessed",
    "perplexity_retain": "perplexity of retain texts",
    "kl": DISTANCE,
    "answer_tokens": "tokens of an answer",
    "answer_empty": "empty answers",
    "answer_unended": "answers without an end",
    "answer_repetition": "repetition within answers",
    "answer_overlap": "what answers have in common",
    "answer_same": "answers given more than once",
    "answer_distinct_2": "different bigrams in answers",
}
"""Figures of the same rows are called as `align` calls them."""

Figures = Mapping[str, Mapping[str, Any]]


def evaluate_plots(run: Path) -> list[Plot]:
    """A figure for each model but the original; none when the run folder is not one of `evaluate`.

    Raises:
        UserError: `evaluation.json` is not what a run writes.
    """
    with _named_faults(run):
        original, others = _models(run)
        return [_changes(place, name, figures, original) for place, (name, figures) in enumerate(others)]


def evaluate_tables(run: Path) -> list[tuple[str, list[Row]]]:
    """Of each model but the original, its name and its figures beside the original's, with intervals.

    Raises:
        UserError: as `evaluate_plots`.
    """
    with _named_faults(run):
        original, others = _models(run)
        return [
            (name, [_beside(key, one, original[key]) for key, one in figures.items()])
            for name, figures in others
        ]


def _models(run: Path) -> tuple[Figures, list[tuple[str, Figures]]]:
    """The original model's figures, and the others' by name."""
    path = run / "evaluation.json"
    if not path.exists():
        return {}, []
    models = parsed(read_file(path))["models"]
    others = [(name, model["figures"]) for name, model in models.items() if name != "original"]
    return models["original"]["figures"], others


@contextmanager
def _named_faults(run: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        path = run / "evaluation.json"
        raise UserError(f"{path}: not what a run writes ({error!r}); write the run again") from None


def in_words(name: str) -> str:
    """A figure's name in `evaluation.json` as people say it."""
    return _WORDS.get(name, name.replace("_", " "))


def _beside(name: str, one: Mapping[str, Any], original: Mapping[str, Any]) -> Row:
    own, first, change = (interval((e["low"], e["high"])) for e in (one, original, one["change"]))
    better = "" if one["better"] == "neither" else str(one["better"])
    values = (number_or_nan(original["value"]), number_or_nan(one["value"]))
    unit = str(one["unit"]).replace(" per ", "/")
    return Row(in_words(name), unit, better, *values, first, own, change, sure_only=True)


def _changes(place: int, model: str, figures: Figures, original: Figures) -> Plot:
    known = [(name, size) for name, one in figures.items() if (size := beyond(one["change"])) is not None]
    shown = known[::-1]  # plotly draws upwards
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [plain(size) for _, size in shown],
        "y": [word(in_words(name)) for name, _ in shown],
        "marker": {"color": [colour_of_change(name, figures[name]["better"], size) for name, size in shown]},
        "hovertemplate": "%{y}: %{x} times<extra></extra>",
    }
    drawn = named_bars(
        bars, "change, by how far its 95 % interval reaches towards 0", 140 + 22 * max(1, len(shown))
    )
    drawn["layout"]["shapes"] = [vertical(edge, "--quiet", dash="dot") for edge in (-1.0, 1.0)]
    name = visible(excerpt(model, 60))
    return Plot(
        f"model-{place}",
        f"{name}: changes from the original model",
        "Past a dotted line a change is beyond the noise of the examples. Green is for the better, red for "
        "the worse, grey has no better direction or is within noise. Longer bars are cut. All figures are in "
        "the table.",
        drawn,
        ["figure", "better", "unit", "original", "model", "change", "95 % interval", "n"],
        [change_row(key, one, original[key]) for key, one in figures.items()],
    )


def beyond(change: Mapping[str, Any]) -> float | None:
    """The change over how far its interval reaches from it towards 0: beyond ±1 just where 0 is outside,
    however lopsided the interval is. At most `LONGEST_BAR`; None where there is no interval, or one without
    width."""
    value, low, high = change["value"], change["low"], change["high"]
    if value is None or low is None or high is None or high <= low:
        return None
    arm = value - low if value > 0 else high - value
    return float(value / max(arm, abs(value) / LONGEST_BAR)) if value else 0.0


def colour_of_change(name: str, better: str, size: float) -> str:
    """Of a change of that size, as `beyond` gives it."""
    if better == "neither" or abs(size) <= 1 or in_words(name) == DISTANCE:
        return "--quiet"
    return "--good" if (size > 0) == (better == "higher") else "--bad"


def change_row(name: str, one: Mapping[str, Any], original: Mapping[str, Any]) -> list[Cell]:
    """A figure's line in a table of numbers: words, better, unit, original, own, change, interval, n."""
    change = one["change"]
    low, high = change["low"], change["high"]
    interval = NOTHING if low is None else f"{number(low, signed=True)} to {number(high, signed=True)}"
    values = [math.nan if v is None else float(v) for v in (original["value"], one["value"], change["value"])]
    return [in_words(name), str(one["better"]), str(one["unit"]), *values, interval, int(one["n"])]
