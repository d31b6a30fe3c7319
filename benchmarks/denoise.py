"""Can ∇J be had from fewer pairs by a better mean than the plain one?

    python benchmarks/main_job.py --data PATH/hh_harmless.jsonl --work runs/main_job   # the original model
    python benchmarks/denoise.py --data PATH/hh_harmless.jsonl --work runs/main_job    # about 15 minutes
    python benchmarks/denoise.py --table                                       # -> docs/results.md

At the original model the impact of negative i is the mean over pairs of ⟨∇s_rejected − ∇s_chosen, H⁻¹∇s_i⟩
(times β/2). Here every pair's part is kept: the 246 validation pairs of the study's case `plenty`, the main
job's 195 negatives, H the mean square of the retain answers' gradients per token, damped by a tenth of its
mean. An estimate from n drawn pairs is compared with the plain mean over all the others, which is noisy but
not biased towards any estimate: mean Spearman over 200 draws.

Gradients go to --work (7 GB) and are used again; the committed result holds numbers only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr, trim_mean

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "study"))
RESULT = HERE / "results" / "denoise.json"
DRAWS, COUNTS = 200, (32, 64, 123)
DAMPING = 0.1
CHUNK = 1 << 15
"""Coordinates that are worked on at once."""
Array = NDArray[np.float64]


def gradients(data: Path, work: Path) -> None:
    """∇s of every text (rows, coordinates of LoRA's B) and its length, one file each, in `work`/denoise."""
    names = ("negatives", "retain", "pairs")
    if all((work / "denoise" / f"{name}_tokens.npy").is_file() for name in names):
        return
    from cases import plenty, read_parts
    from u2a.data.load import load_negatives, load_preferences, load_retain
    from u2a.impact.context import ScoringContext
    from u2a.models.policy import load_policy
    from u2a.preparation import prepare

    parts = read_parts(data, work / "split")
    plenty(parts)
    pairs = work / "denoise" / "pairs.jsonl"
    pairs.parent.mkdir(exist_ok=True)
    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in parts["validation"]]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problem = prepare(
        load_policy(str(work / "original"), lora_rank=16, seed=0),
        negatives=load_negatives(str(work / "split" / "forget.jsonl")),
        preferences=load_preferences(str(pairs)),
        retain=load_retain(str(work / "split" / "retain.jsonl")),
        retain_loss="nll",
        max_length=256,
    )
    context = ScoringContext.of(problem)
    texts = (problem.negative_texts, problem.utility.texts, problem.objective.texts)
    for name, part in zip(names, texts, strict=True):
        if not (work / "denoise" / f"{name}_tokens.npy").is_file():
            _collect(context, part, work / "denoise" / name)


def _collect(context: Any, texts: Any, path: Path) -> None:
    from u2a.impact.per_example import BACKWARD, backward_through, linear_layers
    from u2a.logprobs import evaluating

    layers = linear_layers(context)
    assert layers is not None
    sizes = {
        name: p.numel() for name, p in context.parameters.items() if "lora_B" in name
    }  # at B = 0, ∇_A s = 0
    ends = dict(zip(sizes, np.cumsum(list(sizes.values())), strict=True))
    found = np.lib.format.open_memmap(
        path.with_suffix(".npy"), "w+", np.float32, (len(texts), sum(sizes.values()))
    )
    with evaluating(context.model), torch.enable_grad():
        for attempt in context.attempts(texts, BACKWARD):
            with attempt as batch:
                rows = batch.index.cpu().numpy()

                def take(layer: Any, x: torch.Tensor, g: torch.Tensor, rows: Any = rows) -> None:
                    if layer.weight in sizes:
                        end = ends[layer.weight]
                        each = torch.bmm(g.detach().transpose(1, 2), x.to(g)).flatten(1)
                        found[rows, end - sizes[layer.weight] : end] = each.float().cpu().numpy()

                backward_through(context, layers, batch, take)
                print(f"{path.name}: {attempt.done} of {len(texts)}", flush=True)
    np.save(path.with_name(f"{path.name}_tokens.npy"), np.array(texts["n_tokens"]))


def products(folder: Path) -> dict[str, Array]:
    """⟨∇s_text, H⁻¹∇s_i⟩: `pairs` (2P, N), chosen first; `negatives` (N, N); with the lengths of both."""
    grads = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("negatives", "retain", "pairs")
    }
    tokens = {name: np.load(folder / f"{name}_tokens.npy") for name in grads}
    width, count = grads["retain"].shape[1], len(grads["negatives"])
    h = np.zeros(width)
    for gradient, length in zip(grads["retain"], tokens["retain"], strict=True):
        h += np.square(np.asarray(gradient, np.float64) / length) / len(grads["retain"])
    h += DAMPING * h.mean()
    found = {name: np.zeros((len(grads[name]), count)) for name in ("pairs", "negatives")}
    for begin in range(0, width, CHUNK):
        part = slice(begin, begin + CHUNK)
        right = (np.asarray(grads["negatives"][:, part], np.float64) / h[part]).T
        for name, total in found.items():
            total += np.asarray(grads[name][:, part], np.float64) @ right
    return {**found, "pair_tokens": tokens["pairs"], "negative_tokens": tokens["negatives"]}


def estimates(chosen: Array, rejected: Array, tokens: tuple[Array, Array], gram: Array) -> dict[str, Any]:
    """Name -> what makes impacts (N,) from drawn pairs (indices)."""
    parts = rejected - chosen  # (P, N)
    length = tokens[0] + tokens[1]
    size = np.sqrt(np.square(parts).mean(1))
    _, vectors = np.linalg.eigh(gram)

    def weighted(weights: Array) -> Callable[[Array], Array]:
        return lambda drawn: np.average(parts[drawn], axis=0, weights=weights[drawn])

    def posterior(drawn: Array) -> Array:
        """A Gaussian prior with the negatives' Gram matrix as covariance, its size by moments."""
        mean, noise = parts[drawn].mean(0), np.cov(parts[drawn].T) / len(drawn)
        least = 1e-3 * np.trace(noise)
        prior = gram * max(mean @ mean - np.trace(noise), least) / np.trace(gram)
        return prior @ np.linalg.solve(prior + noise, mean)

    def projected(count: int) -> Callable[[Array], Array]:
        top = vectors[:, -count:]
        return lambda drawn: top @ (top.T @ parts[drawn].mean(0))

    return {
        "plain mean": weighted(np.ones(len(parts))),
        "pairs by 1/tokens": weighted(1 / length),
        "pairs by 1/size": weighted(1 / size),
        "trimmed mean, 10 % at both ends": lambda drawn: trim_mean(parts[drawn], 0.1),
        "median": lambda drawn: np.median(parts[drawn], axis=0),
        "per token": lambda drawn: (
            rejected[drawn] / tokens[1][drawn, None] - chosen[drawn] / tokens[0][drawn, None]
        ).mean(0),
        "rejected answers alone": lambda drawn: rejected[drawn].mean(0),
        "first 20 principal directions": projected(20),
        "first 60 principal directions": projected(60),
        "Gaussian posterior": posterior,
    }


def measured(found: dict[str, Array]) -> dict[str, Any]:
    """What docs/results.md shows."""
    chosen, rejected = np.split(found["pairs"], 2)
    tokens = tuple(np.split(found["pair_tokens"].astype(float), 2))
    parts, count = rejected - chosen, len(chosen)
    mean, error = parts.mean(0), parts.std(0, ddof=1) / np.sqrt(count)
    draw = np.random.default_rng(0)
    halves = [draw.permutation(count) for _ in range(DRAWS)]

    def between_halves(values: Array) -> float:
        pairs = [(values[o[: count // 2]].mean(0), values[o[count // 2 :]].mean(0)) for o in halves]
        return float(np.mean([spearmanr(one, other)[0] for one, other in pairs]))

    per_token = rejected / tokens[1][:, None] - chosen / tokens[0][:, None]
    scores: dict[str, dict[str, float]] = {}
    for name, estimate in estimates(chosen, rejected, tokens, found["negatives"]).items():  # type: ignore[arg-type]
        scores[name] = {
            str(n): float(np.mean([spearmanr(estimate(o[:n]), parts[o[n:]].mean(0))[0] for o in halves]))
            for n in COUNTS
        }
    return {
        "pairs": count,
        "negatives": len(mean),
        "sure": float((np.abs(mean) > 1.96 * error).mean()),
        "with_length": float(spearmanr(mean, found["negative_tokens"])[0]),
        "halves": between_halves(parts),
        "halves_per_token": between_halves(per_token),
        "scores": scores,
    }


def write_table() -> None:
    """The section of docs/results.md."""
    from sections import machine, write_section

    got = json.loads(RESULT.read_text())
    lines = [
        "## Better means of ∇J than the plain one",
        "",
        f"Command: `python benchmarks/denoise.py --data … --work …` ({machine()}); what it does stands at "
        f"its head. {got['pairs']} pairs, {got['negatives']} negatives.",
        "",
        f"| impacts from n pairs | {' | '.join(f'n = {n}' for n in COUNTS)} |",
        "|" + "---|" * (len(COUNTS) + 1),
        *(
            f"| {name} | {' | '.join(f'{by[str(n)]:.2f}' for n in COUNTS)} |"
            for name, by in got["scores"].items()
        ),
        "",
        f"Spearman to the plain mean over the other pairs, mean of {DRAWS} draws. Of all pairs' impacts "
        f"{got['sure']:.0%} are beyond 1.96 standard errors (5 % would by chance); with a negative's "
        f"length they go at {got['with_length']:.2f}. Two halves of the pairs agree at {got['halves']:.2f} "
        f"on the summed margin and at {got['halves_per_token']:.2f} on the margin per token.",
    ]
    write_section("denoise", lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="hh_harmless.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/main_job"))
    parser.add_argument("--table", action="store_true", help="only write docs/results.md")
    options = parser.parse_args()
    if not options.table:
        gradients(options.data, options.work)
        RESULT.write_text(json.dumps(measured(products(options.work / "denoise")), indent=1) + "\n")
    write_table()


if __name__ == "__main__":
    main()
