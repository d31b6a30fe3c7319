"""What each part of u2a's loop is worth: ρ, outer steps, restart, utility budget, selection, curvature.

    python benchmarks/study/ablations.py --data ../shared/data       # resumable: run it again
    python benchmarks/study/ablations.py --table                      # cells -> docs/results.md

The study's main case (see study.py) through `u2a.align`, npo, at the learning rate that the main case picked;
two seeds; each variant changes one thing of the first. 16 optimiser steps in all, shared out over outer
steps, but for `restart`, which takes 16 in each. The best measured point is kept, as `u2a align` does it.
About two hours on one core; two processes of one thread each share the cells.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
CELLS = HERE.parent / "results" / "study" / "ablations"
SEEDS = (0, 1)
STEPS, BATCH = 16, 8

if TYPE_CHECKING:
    from u2a.alignment.ledger import Parameters
    from u2a.impact.table import ImpactTable
    from u2a.problem import Measurement, Problem


@dataclass(frozen=True)
class Variant:
    """What differs from the first one."""

    weights: dict[str, Any] = field(default_factory=dict)
    outer: dict[str, Any] = field(default_factory=dict)
    curvature: str = "diagonal"
    uniform: bool = False


VARIANTS = {
    "as in the study": Variant(),
    "rho 0.3": Variant({"rho": 0.3}),
    "rho 1": Variant({"rho": 1.0}),
    "2 outer steps": Variant(outer={"outer_steps": 2}),
    "curvature identity": Variant(curvature="identity"),
    "2 outer steps, restart": Variant(outer={"outer_steps": 2, "restart": True}),
    "curvature adam": Variant(curvature="adam"),
    "2 outer steps, rho 1": Variant({"rho": 1.0}, {"outer_steps": 2}),
    "2 outer steps, utility budget 0.005": Variant(outer={"outer_steps": 2, "utility_budget": 0.005}),
    "4 outer steps": Variant(outer={"outer_steps": 4}),
    "curvature ekfac": Variant(curvature="ekfac"),
    "select 25 %": Variant({"select": "25%"}),
    "select 100 %": Variant({"select": "100%"}),
    "eta 0": Variant({"eta": 0.0}),
    "eta 2": Variant({"eta": 2.0}),
    "no weights, no selection": Variant(uniform=True),
}
"""In the order in which they are made: what the questions are about first, all at the first seed. ρ acts from
the second outer step on: the first two show that alone."""


@dataclass
class Bench:
    """What all cells share: the problem at φ₀, its measurement and the held-out pairs."""

    first: Problem
    original: Parameters
    start: Measurement
    held_out: Any
    rate: float
    scored: dict[tuple[str, int], tuple[ImpactTable, float]] = field(default_factory=dict)
    """By curvature and seed: the table at φ₀, the same for every variant, and the seconds that it took."""

    def table(self, curvature: str, seed: int) -> tuple[ImpactTable, float]:
        """At φ₀, where the problem is."""
        from u2a.impact.curvature import CURVATURES
        from u2a.impact.table import score_impact

        if (curvature, seed) not in self.scored:
            begin = time.perf_counter()
            table = score_impact(self.first, curvature=CURVATURES[curvature](), at=self.start)
            self.scored[curvature, seed] = table, time.perf_counter() - begin
        return self.scored[curvature, seed]

    def cell(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Aligns once and measures the kept point on the held-out pairs."""
        from u2a.alignment.ledger import restore
        from u2a.alignment.outer_loop import align
        from u2a.config import OuterOptions, UnlearnOptions, WeightOptions
        from u2a.impact.curvature import CURVATURES

        restore(self.first, self.original)
        self.first.policy.redraw_adapter(seed)
        fixed = {"outer_steps": 1, "measurements": 2, "min_gain": -1.0, "max_repetition_rise": 1.0}
        outer = OuterOptions(**{**fixed, **variant.outer})
        steps = STEPS if outer.restart else STEPS // outer.outer_steps
        outer = replace(outer, measurements=max(1, 2 // outer.outer_steps))
        table, scoring = (None, 0.0) if variant.uniform else self.table(variant.curvature, seed)
        begin = time.perf_counter()
        result = align(
            self.first,
            unlearn=UnlearnOptions(learning_rate=self.rate, max_steps=steps, batch_size=BATCH),
            weights=WeightOptions(**variant.weights),
            outer=outer,
            curvature=CURVATURES[variant.curvature](),
            fixed_weights=np.ones(len(self.first.negatives)) if variant.uniform else None,
            start=self.start,
            first_table=table,
            seed=seed,
        )
        seconds = scoring + time.perf_counter() - begin
        return {
            "seed": seed,
            "seconds": seconds,
            "selected": int((result.weights > 0).sum()),
            "outcome": result.outcome,
            "start": result.start.figures,
            "best": result.best.figures,
            "points": [vars(point) for point in result.points],
            "held_out": self.first.logprobs(self.held_out).tolist(),
        }


def make_bench(data: Path, work: Path) -> Bench:
    """Loads the main case of the study."""
    from study_table import picked_rate

    from study import CELLS as STUDY_CELLS
    from study import prepared
    from u2a.alignment.ledger import snapshot
    from u2a.data.load import load_negatives, load_preferences, load_retain
    from u2a.models.policy import load_policy
    from u2a.preparation import prepare
    from u2a.validation import pair_texts

    config, _ = prepared("hh_harmless", data, work)
    rate = picked_rate(STUDY_CELLS / "hh_harmless", "u2a npo")
    if not rate:
        raise SystemExit("run the main case first: its grid picks the learning rate")
    first = prepare(
        load_policy(config["model"], lora_rank=16, seed=0),
        negatives=load_negatives(config["negatives"]),
        preferences=load_preferences(config["preferences"]),
        retain=load_retain(config["retain"]),
        retain_loss="nll",  # so that U is measured on the same rows as in the study
        max_length=config["max_length"],
    )
    first = replace(first, retain_loss="none")
    held_out, _ = pair_texts(load_preferences(config["test"]), first.renderer)
    return Bench(first, snapshot(first), first.measure(negatives=True), held_out, rate)


def run_all(data: Path, work: Path) -> None:
    """Makes the cells that are missing; of several processes each takes its own."""
    from u2a.compare.cells import CellStore
    from u2a.compare.plan import CellName

    store = CellStore(CELLS, {name: {"steps": STEPS, "batch": BATCH} for name in VARIANTS})
    bench: Bench | None = None
    for seed in SEEDS:
        for name, variant in VARIANTS.items():
            cell = CellName(name, 0.0, seed, final=True)
            with store.claim(cell) as mine:
                if not mine:
                    continue
                bench = bench or make_bench(data, work)
                made = bench.cell(variant, seed)
                store.write(cell, made)
                print(f"{name}, seed {seed}: {made['outcome']} {made['seconds']:.0f} s", flush=True)


def write_table() -> None:
    """Held-out margin of every variant over the original, and against the first."""
    from sections import machine, write_section
    from u2a.compare.outcome import difference, interval, margins_of

    original = json.loads((CELLS.parent / "hh_harmless" / "original-0-seed-0.json").read_text())
    base = margins_of(original["points"][-1]["held_out"])
    found: dict[str, list[dict[str, Any]]] = {}
    for name in VARIANTS:
        paths = takewhile(Path.is_file, (CELLS / f"{name}-0-seed-{seed}.json" for seed in SEEDS))
        if cells := [json.loads(path.read_text()) for path in paths]:
            found[name] = cells
    first = next(iter(VARIANTS))
    gains = {n: np.stack([margins_of(c["held_out"]) - base for c in cells]) for n, cells in found.items()}
    lines = [
        "## Ablations of the loop",
        "",
        f"Command: `python benchmarks/study/ablations.py --data …` ({machine()}); what it does stands at its "
        "head. Held-out margin in nats over the original model; 95 % intervals over seeds and pairs.",
        "",
        "| variant | seeds | margin | minus the first | J | retain NLL | KL | negatives | seconds |",
        "|" + "---|" * 9,
    ]
    for name, cells in found.items():
        gain, minus = interval(gains[name]), difference(gains[name], gains[first][: len(cells)])
        than_first = "" if name == first else f"{minus.value:+.2f} [{minus.low:+.2f}, {minus.high:+.2f}]"

        def mean(pick: Any, cells: list[dict[str, Any]] = cells) -> float:
            return float(np.mean([pick(cell) for cell in cells]))

        lines.append(
            f"| {name} | {len(cells)} | {gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}] | {than_first} "
            f"| {mean(lambda c: c['best']['objective'] - c['start']['objective']):+.3f} "
            f"| {mean(lambda c: c['start']['utility'] - c['best']['utility']):+.3f} "
            f"| {mean(lambda c: c['best']['kl']):.3f} | {mean(lambda c: c['selected']):.0f} "
            f"| {mean(lambda c: c['seconds']):.0f} |"
        )
    missing = [name for name in VARIANTS if name not in found]
    write_section("ablations", [*lines, "", f"Not finished: {', '.join(missing)}."] if missing else lines)


if __name__ == "__main__":
    from cases import options_of

    options = options_of(__doc__)
    if options.table:
        write_table()
    else:
        run_all(options.data, options.work.resolve())
