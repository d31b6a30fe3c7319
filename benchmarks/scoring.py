"""What one direction of scoring costs, in forward passes over the same negatives, and in memory.

    python benchmarks/scoring.py            # demo model, 256 negatives of ragged length, about 15 minutes
    python benchmarks/scoring.py --negatives 32 --methods forward fd

Each method runs in a process of its own (so that peak memory is its own), on the same model, direction and
negatives, after one warm-up batch; `forward` is the plain forward pass of our own scorer: length-sorted
batches, logits only at response tokens. `authors` is the loop of the paper's code: a batch of one, logits at
every position, a backward pass, a dot product. The negatives are the demo's texts, one to four of them
joined, so that lengths are as ragged as logs are; the direction is random in B and zero in A, as ∇J is in A
before training. What is left out: loading the model, and ∇J itself (`peers.py` reports both apart: it gives
an adapter, and the direction is then the mean gradient of further texts).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from datasets import Dataset
from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict
from torch import Tensor

from u2a.data.collate import collate, tokenize_rows
from u2a.data.load import load_negatives
from u2a.data.render import Renderer
from u2a.impact.context import Direction, ScoringContext, inner_product
from u2a.impact.gradient import weighted_logprob_gradient
from u2a.impact.scores import directional_derivatives
from u2a.models.policy import Policy, load_policy
from u2a.runs.run_folder import PhaseCost, RunFolder, write_json

METHODS = ("forward", "fd", "exact", "exact-19", "jvp", "authors")
RESULT = Path(__file__).parent / "results" / "scoring.json"
MAX_TOKENS = 2048
QUERY_TEXTS = 8
"""Texts after the negatives whose mean gradient is the direction, where an adapter is given."""


def ragged_negatives(count: int) -> Dataset:
    """`count` rows made of one to four of the demo's negatives each; the same for the same count."""
    texts = load_negatives(str(resources.files("u2a") / "demo_data" / "negatives.jsonl"))["response"]
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        parts = rng.choice(texts, size=rng.integers(1, 5), replace=False)
        prompt = " ".join(rng.choice(texts, size=rng.integers(1, 4), replace=False))
        rows.append(
            {
                "row": i,
                "id": str(i),
                "prompt": [{"role": "user", "content": prompt}],
                "response": " ".join(parts),
            }
        )
    return Dataset.from_list(rows)


def authors_loop(context: ScoringContext, texts: Dataset, direction: dict[str, Tensor]) -> Tensor:
    """Batch of one, logits everywhere, backward, dot product."""
    out = torch.zeros(len(texts))
    leaves = list(context.parameters.values())
    for i in range(len(texts)):
        batch = collate([texts[i]], [i], pad_token_id=context.pad_token_id)
        logits = context.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        s = -torch.nn.functional.cross_entropy(logits[0, :-1], batch.labels[0, 1:], reduction="sum")
        gradient = torch.autograd.grad(s, leaves)
        out[i] = inner_product(dict(zip(context.parameters, gradient, strict=True)), direction)
    return out


def policy_with(adapter: Path | None) -> Policy:
    """The demo model with a fresh adapter of rank 16, or with the weights of a saved one."""
    if adapter is None:
        return load_policy("demo", lora_rank=16)
    policy = load_policy("demo", lora_rank=PeftConfig.from_pretrained(str(adapter)).r)
    set_peft_model_state_dict(policy.model, load_peft_weights(str(adapter)))
    return policy


def measure(method: str, count: int, adapter: Path | None = None) -> dict[str, Any]:
    """Seconds and peak resident memory of one method, in this process.

    Args:
        adapter: a saved adapter to score at, where B is not zero; the direction is then the mean gradient of
            `QUERY_TEXTS` more texts, whose cost is `query_seconds`.
    """
    run = RunFolder(Path(), {name: PhaseCost(name) for name in ("load", "query", "work")})
    with run.phase("load"):
        policy = policy_with(adapter)
        # weights are mapped from their file: resident only once they are read
        sum(float(p.detach().sum()) for p in policy.model.parameters())
    loaded = psutil.Process().memory_info().rss
    extra = QUERY_TEXTS if adapter else 0
    tokenized = tokenize_rows(ragged_negatives(count + extra), Renderer(policy.tokenizer))
    texts = tokenized.select(range(count))
    context = ScoringContext(policy.model, policy.trainable(), MAX_TOKENS, policy.tokenizer.pad_token_id)
    context.logprobs(texts.select(range(4)))
    with run.phase("query"):
        queries = tokenized.select(range(count, count + extra))
        direction = mean_gradient(context, queries) if adapter else random_direction(context)
    begin = time.perf_counter()
    check = None
    with run.phase("work"):
        if method == "forward":
            values = context.logprobs(texts)
        elif method == "authors":
            values = authors_loop(context, texts, direction)
        elif method == "exact-19":  # J, U, ∇J itself and 16 groups of pairs: what `impact` asks for
            found = directional_derivatives(context, texts, [direction] * 19, method="exact")
            values = found.along[0]
        else:
            found = directional_derivatives(context, texts, [direction], method=method)
            values = found.along[0]
            check = found.self_checks[0] if found.self_checks else None
    return {
        "method": method,
        "seconds": time.perf_counter() - begin,
        "load_seconds": run.phases["load"].seconds,
        "query_seconds": run.phases["query"].seconds,
        "peak_mib": run.phases["work"].peak_bytes / 2**20,
        "loaded_mib": loaded / 2**20,
        "tokens": sum(len(ids) for ids in texts["input_ids"]),
        "values": values.tolist(),
        "self_check": vars(check) if check else None,
    }


def mean_gradient(context: ScoringContext, texts: Dataset) -> Direction:
    """The mean over texts of ∇s_i."""
    return weighted_logprob_gradient(context, texts, torch.full((len(texts),), 1 / len(texts)))


def random_direction(context: ScoringContext) -> Direction:
    """Random in B and zero in A: as ∇J where B = 0."""
    generator = torch.Generator().manual_seed(0)
    return {
        n: torch.randn(p.shape, generator=generator) if "lora_B" in n else torch.zeros_like(p)
        for n, p in context.parameters.items()
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--negatives", type=int, default=256)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--one", choices=METHODS, help="measure one method here and print JSON")
    parser.add_argument("--adapter", type=Path, help="with --one: a saved adapter to score at")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.negatives, options.adapter)))
        return
    found = {}
    for method in options.methods:
        command = [sys.executable, __file__, "--one", method, "--negatives", str(options.negatives)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[method] = json.loads(output.splitlines()[-1])
    report(found, options.negatives)


def report(found: dict[str, dict[str, Any]], count: int) -> None:
    """Prints the table in units of the forward pass and writes it to results/."""
    from scipy.stats import spearmanr

    base = found["forward"]
    print(
        f"{count} negatives, {base['tokens']} tokens, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    print(
        "| method | seconds | forward passes | s / 1,000 tokens | peak MiB | of forward | Spearman to exact |"
    )
    print("|---|---|---|---|---|---|---|")
    for method, cell in found.items():
        exact = found.get("exact") or found.get("authors")
        agreement = (
            spearmanr(cell["values"], exact["values"]).statistic if exact and method != "forward" else None
        )
        cell["spearman"] = agreement
        ranks = "–" if agreement is None else f"{agreement:.4f}"
        print(
            f"| {method} | {cell['seconds']:.1f} | {cell['seconds'] / base['seconds']:.2f} | "
            f"{1000 * cell['seconds'] / cell['tokens']:.2f} | {cell['peak_mib']:.0f} | "
            f"{cell['peak_mib'] / base['peak_mib']:.2f} | {ranks} |"
        )
    for cell in found.values():
        del cell["values"]
    write_json(RESULT, {"negatives": count, "threads": torch.get_num_threads(), "methods": found})


if __name__ == "__main__":
    main()
