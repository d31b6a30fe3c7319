"""The cases of the study: data, original model, methods. Each becomes one configuration of `u2a compare`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VALIDATION, TEST, RETAIN = 64, 100, 64
MAX_CHARS, LONGER = 400, 600
SETTINGS: dict[str, Any] = {
    "max_length": 256,
    "loss": "npo",
    "curvature": "diagonal",
    "scoring": "exact",
    "steps": 16,
    "batch_size": 8,
    "rates": "1e-4,2e-4,4e-4",
    "seeds": 3,
    "looks": 2,
    "nll_rise": 0.02,
    "max_nll_rise": 0.1,
    "judged": "u2a npo",
}
LOSSES = ("ga", "graddiff", "npo", "simnpo")
JOINT = {"method": "u2a", "name": "u2a joint", "joint": 1.0}
EVEN = {"method": "u2a", "name": "u2a joint 20", "joint": 20.0}
"""μ = 2/β: at the original model a nat of a pair's answer then pulls as hard as one of a negative: npo's
slope there is 1, J's β/2. With μ = 1 it is a twentieth. The ratio of the issue that asked for joint."""
DPO = {"method": "dpo", "name": "dpo validation", "pairs": "validation"}
KTO = {"method": "kto", "name": "kto validation", "pairs": "validation", "undesirable": "negatives"}
SFT = {"method": "sft", "name": "sft validation", "pairs": "validation"}


GENTLE = {"method": "u2a", "name": "u2a npo 1e-4", "loss": "npo", "rate": 1e-4}
"""Half the rate that the grid picked for u2a npo: at that one its answers ran in circles (the finalists)."""


NPO_RATE, KTO_RATE, DPO_RATE = 2e-4, 4e-4, 4e-4
"""What the main case's grid picked for u2a, uniform, random-k and selected alike with npo, and for KTO (by J
at the end, as for its row in the table) and DPO on validation pairs: variants of those take it, without a
grid of their own, to keep the study small."""


def unlearning(kind: str, loss: str) -> dict[str, Any]:
    """`u2a npo` and the like."""
    return {"method": kind, "name": f"{kind} {loss}", "loss": loss}


def every_method() -> list[dict[str, Any]]:
    """Every method of the main case, those that matter most first."""
    kinds = ("u2a", "uniform", "random-k")
    return [
        *(unlearning(kind, loss) for loss in ("npo", "graddiff") for kind in kinds),
        GENTLE,
        *(JOINT, EVEN, DPO, KTO, SFT, {"method": "climb"}),
        *({"method": kind} for kind in ("dpo", "kto", "sft", "selected")),
        *({"method": kind, "rate": NPO_RATE} for kind in ("weights", "cosine", "static")),
        {**KTO, "name": "kto weighted", "weighted": True, "rate": KTO_RATE},
        {"method": "d2o", "rate": DPO_RATE},
        {"method": "retrain", "pretrained": "demo"},
        {"method": "rloo", "longest": 48},
        *(unlearning(kind, loss) for loss in ("ga", "simnpo") for kind in kinds),
    ]


SIX = [*(unlearning(kind, "npo") for kind in ("u2a", "uniform", "random-k")), JOINT, DPO, KTO]
"""Methods of the smaller cases."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        methods: as in a configuration of `u2a compare`.
        change: rewrites the parts of the split (name -> rows) for this case.
        seeds: how many. own_rates: picks learning rates by its own grid; else takes those of the main case.
        data: which file it is for.
    """

    methods: list[dict[str, Any]]
    change: Callable[[dict[str, list[Any]]], None] = lambda _parts: None
    seeds: int = 2
    own_rates: bool = False
    data: str = "hh_harmless"
    settings: dict[str, Any] = field(default_factory=dict)


def mislabelled(parts: dict[str, list[Any]]) -> None:
    """A fifth of the negatives, drawn by a seed, become the chosen answers to their own prompts."""
    good = {row["prompt_key"]: row["chosen"] for row in parts["pairs"]}
    count = len(parts["forget"])
    for position in np.random.default_rng(0).permutation(count)[: count // 5]:
        row = dict(parts["forget"][position])
        row["completion"] = [{"role": "assistant", "content": good[key_of(row["prompt"])]}]
        parts["forget"][position] = row


def validation_of(count: int) -> Callable[[dict[str, list[Any]]], None]:
    """So many validation pairs; past those of the split, pairs that no case holds out."""

    def change(parts: dict[str, list[Any]]) -> None:
        parts["validation"] = [*parts["all validation"], *parts["spare"]][:count]

    return change


def negatives_of(count: int) -> Callable[[dict[str, list[Any]]], None]:
    """So many negatives, drawn by a seed: of the split's, and past those of all other prompts'."""

    def change(parts: dict[str, list[Any]]) -> None:
        own, more = parts["forget"], parts["other rejected"]
        drawn = np.random.default_rng(0)
        if count <= len(own):
            parts["forget"] = [own[i] for i in sorted(drawn.permutation(len(own))[:count])]
            return
        chosen = sorted(drawn.permutation(len(more))[: count - len(own)])
        parts["forget"] = [*own, *(more[i] for i in chosen)]

    return change


def more_held_out(parts: dict[str, list[Any]]) -> None:
    """All held-out pairs of the split: what 100 of them cannot tell apart."""
    parts["test"] = [*parts["test"], *parts["spare"]]


def plenty(parts: dict[str, list[Any]]) -> None:
    """For validation all pairs of the split but the first test ones; held out, longer rows' pairs besides."""
    tested = {key_of(row["prompt"]) for row in parts["test"]}
    spare = [row for row in parts["spare"] if key_of(row["prompt"]) not in tested]
    parts["validation"] = [*parts["all validation"], *spare]
    parts["test"] = [*parts["test"], *parts["other pairs"]]


POWER = [
    *(unlearning(kind, loss) for loss in LOSSES for kind in ("u2a", "uniform", "random-k")),
    JOINT,
    DPO,
    KTO,
]
"""The differences that the question is about."""
INFORMED = [SIX[0], JOINT, DPO, KTO, SFT, {"method": "climb"}]
"""What a user with a few validation pairs would choose from."""
CASES: dict[str, Case] = {
    "hh_harmless": Case(every_method(), seeds=3, own_rates=True),
    "held-out-251": Case(POWER, more_held_out, seeds=3),
    "plenty": Case(SIX, plenty, seeds=3),
    "mislabelled": Case([*POWER, {"method": "cosine"}], mislabelled, seeds=3),
    "truthfulqa": Case([*SIX, EVEN], own_rates=True, data="truthfulqa_pairs", seeds=3),
    **{f"validation-{n}": Case(INFORMED, validation_of(n)) for n in (16, 32, 128)},
    **{f"negatives-{n}": Case([SIX[0], SIX[1], JOINT, KTO], negatives_of(n)) for n in (100, 700)},
}


def key_of(prompt: Any) -> str:
    """What a prompt is recognised by."""
    from u2a.data.validate import prompt_key

    return prompt_key(prompt).hex()


def read_parts(data: Path, folder: Path) -> dict[str, list[Any]]:
    """The split's rows, and what cases draw from besides: `pairs` are both answers to every training prompt,
    `spare` pairs, `other pairs` (longer ones) and `other rejected` answers are of prompts that are nowhere in
    the main case."""
    from u2a.data.load import load_preferences

    def rows(name: str) -> list[Any]:
        return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]

    parts = {name: rows(name) for name in ("original", "forget", "retain", "validation", "test")}
    spare, parts["test"] = parts["test"][TEST:], parts["test"][:TEST]
    parts["all validation"] = parts["validation"]
    parts["validation"] = parts["validation"][:VALIDATION]
    parts["mixture"], parts["retain"] = parts["retain"], parts["retain"][:RETAIN]
    trained = {key_of(row["prompt"]) for row in parts["original"]}
    held = {key_of(row["prompt"]) for row in spare}
    kept = trained | {key_of(row["prompt"]) for name in ("all validation", "test") for row in parts[name]}
    pairs, other, more = [], [], []
    for row in load_preferences(str(data)):
        prompt = [{"role": "system", "content": ""}, *row["prompt"]]  # as the split has them
        key = key_of(prompt)
        if key in trained:
            pairs.append(
                {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"], "prompt_key": key}
            )
        elif key not in kept and sum(len(t["content"]) for t in prompt) + len(row["rejected"]) <= LONGER:
            answer = [{"role": "assistant", "content": row["rejected"]}]
            other.append({"id": f"other-{row['id']}", "prompt": prompt, "completion": answer})
            if key not in held and sum(len(t["content"]) for t in prompt) + len(row["chosen"]) <= LONGER:
                good = [{"role": "assistant", "content": row["chosen"]}]
                more.append({"prompt": prompt, "chosen": good, "rejected": answer})
    return {**parts, "pairs": pairs, "spare": spare, "other rejected": other, "other pairs": more}


def write_parts(parts: dict[str, list[Any]], folder: Path) -> None:
    """The files that a configuration names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("forget", "mixture", "retain", "validation", "test", "pairs"):
        lines = [
            json.dumps({key: value for key, value in row.items() if key != "prompt_key"}) + "\n"
            for row in parts[name]
        ]
        (folder / f"{name}.jsonl").write_text("".join(lines))


def options_of(
    about: str, more: Callable[[argparse.ArgumentParser], Any] | None = None
) -> argparse.Namespace:
    """Of the scripts that go on from the main case: `--table` writes, anything else computes."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder of the data files")
    parser.add_argument("--work", type=Path, default=Path("runs/main_job"), help="that of main_job.py")
    parser.add_argument("--table", action="store_true", help="only write docs/results.md from what is there")
    if more:
        more(parser)
    return parser.parse_args()
