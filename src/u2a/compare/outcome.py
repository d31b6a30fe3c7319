"""From cells to the answer: figures with intervals over seeds and pairs, margins at equal cost, a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from u2a.config import MOST_OVERLAP_RISE, MOST_REPETITION_RISE

Array = NDArray[np.float64]

DRAWS = 2000
"""Bootstrap replicates behind an interval."""


class Interval(NamedTuple):
    """`value` with a 95 % interval; NaN ends = none."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """+1 above 0, −1 below, 0 where the interval holds it or there is none."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Outcome:
    """One method over its seeds.

    `margins` (S, P) are the gains of the held-out margin over the original model at the end, in nats a pair,
    `at_cost` (S, P) those where the retain NLL has risen by the given amount (or at the end, where it rose
    less); `rises` (S,) the rise of the retain NLL at the end, in nats per token, `kl` (S,) likewise;
    `repetition` (S,) the share of repeated 4-grams in greedy answers there (`u2a.answers`), `overlap` (S,)
    that of an answer's 2-grams that stand in others too, `repetition_rise` and `overlap_rise` (S,) their
    rises beyond noise, all NaN in runs of before they were measured; `reached`
    whether every seed reached that rise. `curve` are (rise, margin, seconds) at every look, the first two
    means over seeds. `seconds`, here and in `curve`, is the median over seeds: one run beside other work on
    the machine must not spoil it. Tokens are means.
    """

    name: str
    kind: str
    rate: float
    seeds: int
    margins: Array
    at_cost: Array
    accuracy: Array
    rises: Array
    kl: Array
    repetition: Array
    repetition_rise: Array
    overlap: Array
    overlap_rise: Array
    objective: Array
    reached: bool
    curve: list[tuple[float, float, float]]
    seconds: float
    forward_tokens: float
    trained_tokens: float


def outcome(
    name: str, kind: str, cells: Sequence[Mapping[str, Any]], original: Mapping[str, Any], rise: float
) -> Outcome:
    """Of the final cells of one method, one a seed.

    Args:
        original: the final cell of the original model. rise: of the retain NLL, where margins are compared.
    """
    base = margins_of(original["points"][-1]["held_out"])
    looks = [
        [
            (cell["start"]["utility"] - p["utility"], margins_of(p["held_out"]) - base, p["seconds"])
            for p in cell["points"]
        ]
        for cell in cells
    ]
    ends = [run[-1] for run in looks]
    steps = min(len(run) for run in looks)
    return Outcome(
        name=name,
        kind=kind,
        rate=cells[0]["rate"],
        seeds=len(cells),
        margins=np.stack([margin for _, margin, _ in ends]),
        at_cost=np.stack([at_rise([(r, m) for r, m, _ in run], rise) for run in looks]),
        accuracy=np.stack([(margin + base > 0).astype(float) for _, margin, _ in ends]),
        rises=np.array([r for r, _, _ in ends]),
        kl=np.array([_number(cell["points"][-1]["kl"]) for cell in cells]),
        repetition=np.array([_number(cell.get("repetition")) for cell in cells]),
        repetition_rise=np.array([_rise(cell, original) for cell in cells]),
        overlap=np.array([_number(cell.get("overlap")) for cell in cells]),
        overlap_rise=np.array([_number(cell.get("overlap_rise")) for cell in cells]),
        objective=np.array([c["points"][-1]["objective"] - c["start"]["objective"] for c in cells]),
        reached=all(max(r for r, _, _ in run) >= rise for run in looks),
        # within a time a slow run has fewer looks; the last of each is its end
        curve=[_mean_look([run[k] for run in looks]) for k in (*range(steps - 1), -1)],
        seconds=float(np.median([cell["seconds"] for cell in cells])),
        forward_tokens=float(np.mean([cell["tokens"]["forward"] for cell in cells])),
        trained_tokens=float(np.mean([cell["tokens"]["trained"] for cell in cells])),
    )


def _mean_look(looks: Sequence[tuple[float, Array, float]]) -> tuple[float, float, float]:
    """Of one look: rise and margin over pairs, mean over seeds, and seconds, median over seeds."""
    rises, margins, seconds = zip(*looks, strict=True)
    return float(np.mean(rises)), float(np.mean(margins)), float(np.median(seconds))


def margins_of(held_out: Sequence[float]) -> Array:
    """log π(chosen) − log π(rejected) of each pair, from (2P,) log-probs -> (P,)."""
    chosen, rejected = np.split(np.asarray(held_out, np.float64), 2)
    return chosen - rejected


def at_rise(run: Sequence[tuple[float, Array]], rise: float) -> Array:
    """The gains (P,), of margins or of J, where the run first passes that rise of the retain NLL, straight
    between looks, from 0 at the original model. A run that never does is taken at its end: it cost less, and
    is not helped."""
    before: tuple[float, Array] = (0.0, np.zeros_like(run[0][1]))
    for now in run:
        if now[0] >= rise > before[0]:
            share = (rise - before[0]) / (now[0] - before[0])
            return before[1] + share * (now[1] - before[1])
        before = now
    return run[-1][1]


def interval(values: Array, seed: int = 0) -> Interval:
    """Mean of (S, P) values; the 95 % interval draws seeds and pairs anew, together. One pair has none: it
    says nothing of others."""
    return _interval(float(values.mean()), _means(values, seed))


def difference(one: Array, other: Array, seed: int = 0) -> Interval:
    """Mean of one minus the other, (S, P) each, paired: the same pairs and, where both have as many seeds,
    the same seeds are drawn for both. One pair has no interval."""
    return _interval(float(one.mean() - other.mean()), _means(one, seed) - _means(other, seed))


def verdict(
    judged: Outcome,
    others: Sequence[Outcome],
    rise: float,
    most_repetition_rise: float = MOST_REPETITION_RISE,
) -> list[str]:
    """Sentences that say which differences of the margin at equal cost the intervals support, and what those
    leave out: seeds where there is one, everything where there is one pair; answers that run in circles,
    where repetition rose by more than that in any seed; and answers that are all alike."""
    found: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for other in others:
        found[difference(judged.at_cost, other.at_cost).sign].append(other.name)
    lines = [f"{judged.name}, held-out margin at a rise of the retain NLL of {rise:g} nats per token:"]
    words = {1: "better than", 0: "not significantly different from", -1: "worse than"}
    lines += [f"{words[sign]} {', '.join(names)}" for sign, names in found.items() if names]
    if judged.at_cost.shape[1] == 1:
        lines.append("one held-out pair has no interval: no difference can be called significant")
    else:
        lone = [o.name for o in (judged, *others) if o.seeds == 1 and o.kind != "original"]
        if lone:
            lines.append(f"of one seed, so that intervals are about pairs alone: {', '.join(lone)}")
    every = [o for o in (judged, *others) if o.kind != "original"]
    circling = [o.name for o in every if (o.repetition_rise > most_repetition_rise).any()]
    unknown = [o.name for o in every if o.name not in circling and np.isnan(o.repetition_rise).any()]
    if circling:
        lines.append(f"answers that run in circles at the end, which no margin shows: {', '.join(circling)}")
    if alike := [o.name for o in every if (o.overlap_rise > MOST_OVERLAP_RISE).any()]:
        lines.append(f"much the same answer to every prompt at the end: {', '.join(alike)}")
    if unknown:
        lines.append(f"made before answers were looked at for that: {', '.join(unknown)}")
    short = [o.name for o in (judged, *others) if not o.reached]
    if short:
        lines.append(f"taken at their end, since they never cost that much: {', '.join(short)}")
    return lines


def _means(values: Array, seed: int) -> Array:
    """Means of (S, P) values over drawn seeds and pairs, (DRAWS,); NaN for one pair. Pairs are drawn before
    seeds, so arrays of as many pairs get the same ones."""
    seeds, pairs = values.shape
    if pairs == 1:
        return np.full(DRAWS, np.nan)
    draw = np.random.default_rng(seed)
    columns = draw.integers(pairs, size=(DRAWS, pairs))
    rows = draw.integers(seeds, size=(DRAWS, seeds))
    return np.array([values[np.ix_(r, c)].mean() for r, c in zip(rows, columns, strict=True)])


def _interval(value: float, drawn: Array) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _rise(cell: Mapping[str, Any], original: Mapping[str, Any]) -> float:
    """That of repetition, beyond noise; of a cell from before noise was looked at, the difference."""
    if "repetition_rise" in cell:
        return _number(cell["repetition_rise"])
    return _number(cell.get("repetition")) - _number(original.get("repetition"))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
