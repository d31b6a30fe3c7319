"""Writes the fidelity section of docs/results.md from the committed cells. Called by fidelity.py."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fidelity import (
    CHOSEN,
    CURVE,
    NEGATIVES,
    RESULTS,
    SEEDS,
    SINGLED_OUT,
    STRENGTHS,
    SUBSETS,
    Setting,
    cells_of,
    curve_plan,
    subset_plan,
)
from fidelity_scores import BY_RUN
from sections import write_section
from u2a.impact.curvature import CURVATURES
from u2a.verification.agreement import Ceiling, agreement, noise_ceiling, spearman

Array = NDArray[np.float64]
FIGURES = {"validation": "objective", "held-out": "held_out", "U": "utility"}
"""Column of the table -> figure of a cell."""
LOSSES = ("npo", "graddiff")
DRAWS = 2000


@dataclass(frozen=True)
class Measured:
    """What is finished of one loss and strength: changes (S, R) by figure, over the seeds that are whole."""

    loss: str
    strength: str
    seeds: tuple[int, ...]
    changes: dict[str, Array]
    kl: float

    def sums(self, scores: Array) -> Array:
        """Predicted Σ_{i∈S} of scores (R, N), mean over seeds: (S,)."""
        members = subset_plan(Setting(self.loss, self.strength, 0)).members[:SUBSETS]
        return (members.astype(np.float64) @ scores.T).mean(axis=1)


def measured(loss: str, strength: str) -> Measured | None:
    """None where no seed is whole."""
    found, kl = {}, []
    for seed in SEEDS:
        setting = Setting(loss, strength, seed)
        cells = cells_of(RESULTS / setting.name, subset_plan(setting))
        if all(subset in cells for subset in range(SUBSETS)):
            found[seed] = cells
            kl += [cells[subset]["end"]["kl"] for subset in range(SUBSETS)]
    if not found:
        return None
    changes = {
        name: np.array(
            [
                [cells[s]["end"][figure] - cells[s]["start"][figure] for cells in found.values()]
                for s in range(SUBSETS)
            ]
        )
        for name, figure in FIGURES.items()
    }
    return Measured(loss, strength, tuple(found), changes, float(np.mean(kl)))


def scores_of(here: Measured) -> tuple[dict[str, dict[str, Array]], dict[str, Array]]:
    """Estimators, name -> {"impact", "utility_cost"}, and controls, each (R, N), if every seed has them."""

    def read(name: str) -> list[dict[str, Any]] | None:
        paths = [RESULTS / "scores" / f"{here.loss}-{seed}-{name}.json" for seed in here.seeds]
        if not all(path.is_file() for path in paths):
            return None
        return [json.loads(path.read_text(encoding="utf-8"))["scores"] for path in paths]

    estimators, controls = {}, {}
    for name, file in [*((n, n) for n in CURVATURES), *((n, f"{here.strength}-{n}") for n in BY_RUN)]:
        found = read(file)
        if found:
            estimators[name] = {
                key: np.array([each[name][key] for each in found]) for key in ("impact", "utility_cost")
            }
    for each in [read("controls") or []]:
        names = [name for name in each[0] if name != "left_out"] if each else []
        controls = {name: np.array([one[name] for one in each]) for name in names}
    return estimators, controls


def lead(ours: Array, theirs: Array, truth: Array) -> str:
    """Difference of two LDS on the same subsets, with a bootstrap interval over subsets and seeds."""
    rng = np.random.default_rng(0)
    subsets, seeds = truth.shape
    rows = rng.integers(subsets, size=(DRAWS, subsets))
    columns = rng.integers(seeds, size=(DRAWS, seeds))
    again = truth[rows[:, :, None], columns[:, None, :]].mean(axis=2)
    drawn = spearman(ours[rows], again) - spearman(theirs[rows], again)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    whole = float(spearman(ours, truth.mean(1)) - spearman(theirs, truth.mean(1)))
    return f"{whole:+.2f} [{low:+.2f}, {high:+.2f}]"


def ceiling(here: Measured, name: str) -> Ceiling:
    changes = here.changes[name]
    return noise_ceiling(changes, list(changes))


def table(here: Measured) -> list[str]:
    """One loss and strength: a row for each score."""
    estimators, controls = scores_of(here)
    rows: list[tuple[float, str]] = []
    for name, found in estimators.items():
        rows.append(row(here, name, here.sums(found["impact"]), here.sums(-found["utility_cost"])))
    for name, scores in controls.items():
        rows.append(row(here, f"– {name}", here.sums(scores), None))
    spread = {name: changes.mean(1).std(ddof=1) for name, changes in here.changes.items()}
    top = [f"{n} {c.mean():+.4f} ± {spread[n]:.4f}" for n, c in here.changes.items()]
    limits = {name: ceiling(here, name) for name in FIGURES}
    lines = [
        f"### {here.loss}, {here.strength}: {STRENGTHS[here.strength].max_steps} steps at "
        f"{STRENGTHS[here.strength].learning_rate:g}, KL {here.kl:.4f}",
        "",
        f"Measured changes, mean ± spread over {SUBSETS} subsets: {', '.join(top)}. Seeds: "
        f"{len(here.seeds)}.",
        "",
        "| score (–: control) | LDS validation | 95 % | LDS held-out | 95 % | LDS of U | Pearson | slope |",
        "|---|---|---|---|---|---|---|---|",
        *(line for _, line in sorted(rows, key=lambda each: -each[0])),
        itself(here),
        "| what noise allows | "
        + " | ".join([number(limits["validation"].lds), "", number(limits["held-out"].lds), ""])
        + f" | {number(limits['U'].lds)} | {number(limits['validation'].pearson)} | |",
        "",
    ]
    return lines + leads(here, estimators, controls)


def leads(here: Measured, estimators: dict[str, dict[str, Array]], controls: dict[str, Array]) -> list[str]:
    """The best estimator against the best control, both picked on validation pairs."""
    truth = here.changes["validation"]

    def lds(scores: Array) -> float:
        value = float(spearman(here.sums(scores), truth.mean(1)))
        return -1.0 if math.isnan(value) else value

    if not estimators or not controls:
        return []
    best = max(estimators, key=lambda name: lds(estimators[name]["impact"]))
    rival = max(controls, key=lambda name: lds(controls[name]))
    sums = here.sums(estimators[best]["impact"]), here.sums(controls[rival])
    found = {name: lead(*sums, here.changes[name]) for name in ("validation", "held-out")}
    chosen = here.sums(estimators[CHOSEN]["impact"])
    to_default = lead(sums[0], chosen, truth) if best != CHOSEN else "the same"
    over_rival = lead(chosen, sums[1], truth)
    return [
        f"{best} minus the best control, {rival}: {found['validation']} on validation pairs, "
        f"{found['held-out']} on held-out pairs. {best} minus the default, {CHOSEN}: {to_default}; {CHOSEN} "
        f"minus {rival}: {over_rival}, on validation pairs.",
        "",
    ]


def itself(here: Measured) -> str:
    """How well what was measured on the validation pairs predicts the held-out ones: no score can be faithful
    to the former and predict the latter better."""
    found = agreement(here.changes["validation"].mean(1), here.changes["held-out"])
    return f"| measured on validation | 1 | | {number(found.lds)} | {interval(found.interval)} | | | |"


def row(here: Measured, name: str, sums: Array, of_u: Array | None) -> tuple[float, str]:
    """Sort key and line."""
    on = {scope: agreement(sums, here.changes[scope]) for scope in ("validation", "held-out")}
    u = math.nan if of_u is None else agreement(of_u, here.changes["U"]).lds
    v, h = on["validation"], on["held-out"]
    line = (
        f"| {name} | {number(v.lds)} | {interval(v.interval)} | {number(h.lds)} | {interval(h.interval)} | "
        f"{number(u)} | {number(v.pearson)} | {number(v.slope, '.2g')} |"
    )
    return (-2.0 if math.isnan(v.lds) else v.lds), line


def number(value: float, form: str = ".2f") -> str:
    return "–" if math.isnan(value) else f"{value:{form}}"


def interval(ends: tuple[float, float]) -> str:
    return "–" if math.isnan(ends[0]) else f"[{ends[0]:.2f}, {ends[1]:.2f}]"


def costs() -> list[str]:
    """Seconds of each estimator's scoring, and how well systems were solved."""
    lines = [
        "| estimator | seconds (npo, seed by seed) | products with H | relative residual |",
        "|---|---|---|---|",
    ]
    for name in [*CURVATURES, *(f"{strength}-{each}" for each in BY_RUN for strength in STRENGTHS)]:
        paths = [RESULTS / "scores" / f"npo-{seed}-{name}.json" for seed in SEEDS]
        found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
        if not found:
            continue
        seconds = ", ".join(f"{each['seconds']:.0f}" for each in found)
        solved = found[0].get("solved")
        iterations = "–" if not solved or not any(solved["iterations"]) else str(sum(solved["iterations"]))
        residual = "–" if iterations == "–" else f"{max(solved['residual']):.2g}"
        lines.append(f"| {name} | {seconds} | {iterations} | {residual} |")
    return lines


def singles() -> list[str]:
    """Single negatives unlearned alone, against the scores of the same setting."""
    plan = subset_plan(SINGLED_OUT)
    cells = cells_of(RESULTS / SINGLED_OUT.name, plan)
    alone = [s for s in range(SUBSETS, len(plan.members)) if s in cells]
    here = measured(SINGLED_OUT.loss, SINGLED_OUT.strength)
    if len(alone) < 3 or here is None:
        return []
    estimators, _ = scores_of(here)
    rows = [int(np.flatnonzero(plan.members[s])[0]) for s in alone]
    truth = np.array([cells[s]["end"]["objective"] - cells[s]["start"]["objective"] for s in alone])
    found = {
        name: float(spearman(each["impact"][SEEDS.index(SINGLED_OUT.seed)][rows], truth))
        for name, each in estimators.items()
    }
    by_score = ", ".join(f"{name} {number(value)}" for name, value in found.items())
    return [
        f"Single negatives ({SINGLED_OUT.name}): {len(alone)} unlearned alone with as many steps, ΔJ from "
        f"{truth.min():+.4f} to {truth.max():+.4f} (mean {truth.mean():+.4f}), "
        f"{int((truth > 0).sum())} above 0. Rank correlation with the impact: {by_score}.",
        "",
    ]


def curves() -> list[str]:
    """ΔJ and ΔU of the best, the worst and random k."""
    plan = curve_plan()
    if plan is None:
        return []
    cells = cells_of(RESULTS / f"{SINGLED_OUT.name}-curves", plan)
    lines = [
        f"Best, worst and random k of {NEGATIVES} by the impact of {CHOSEN} ({SINGLED_OUT.name}, as many "
        "steps for every k):",
        "",
        "| k | negatives | ΔJ validation | ΔJ held-out | ΔU | KL |",
        "|---|---|---|---|---|---|",
    ]
    for place in sorted(cells, key=lambda p: (CURVE[p][1], CURVE[p][0])):
        kind, k, _ = CURVE[place]
        start, end = cells[place]["start"], cells[place]["end"]
        gains = [f"{end[name] - start[name]:+.4f}" for name in FIGURES.values()]
        lines.append(f"| {k} | {kind} | " + " | ".join(gains) + f" | {end['kl']:.4f} |")
    return [*lines, ""]


def write_table() -> None:
    """Replaces the section, with whatever cells there are."""
    found = [m for strength in STRENGTHS for loss in LOSSES if (m := measured(loss, strength))]
    lines = [
        "## Fidelity: predicted against measured",
        "",
        "Command: `python benchmarks/fidelity.py --work runs/main_job --embedding-model FOLDER`, then "
        "`--table` (2 cores, no accelerator; resumable cells in `benchmarks/results/fidelity`). LDS: "
        "Spearman over subsets between Σ of the scores and the measured change. Where two seeds are whole "
        "(LoRA's A and the order of steps), both sides are means over them; square brackets are 95 % "
        "bootstrap intervals over subsets and seeds. U is the retain log-likelihood per token, predicted by "
        "utility costs. "
        "`what noise allows` comes from the spread between seeds.",
        "",
    ]
    for here in found:
        lines += table(here)
    write_section("fidelity", [*lines, *singles(), *curves(), *costs()])
