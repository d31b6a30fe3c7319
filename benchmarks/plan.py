"""Is `u2a plan` right? Its ratios against processor seconds measured here, on models of three sizes.

    python benchmarks/plan.py --work runs/plan     # -> docs/scaling.md; 5 minutes on one core

The plan's unit is the forward pass: its speed on a machine is the user's to say (--flops, --utilisation). So
each model's plain log-probs over the same texts are measured, which gives the operations per second that
are reached, and everything else is predicted from it: a pass with gradients of an adapter, of all parameters,
with checkpointing, and scoring. Random Llama models besides the demo's; one thread; the lower of two runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sections import machine
from u2a.cost_model import SCORING_PASSES, Workload
from u2a.data.collate import tokenize_rows
from u2a.data.load import load_negatives
from u2a.data.render import Renderer
from u2a.impact.context import ScoringContext
from u2a.impact.gradient import weighted_logprob_gradient
from u2a.impact.scores import directional_derivatives
from u2a.models.demo_model import demo_model
from u2a.models.policy import load_policy
from u2a.runs.run_folder import write_json

HERE = Path(__file__).parent
CELL = HERE / "results" / "plan.json"
PAGE = HERE.parent / "docs" / "scaling.md"
DEMO = HERE.parent / "src" / "u2a" / "demo_data"
TEXTS = 24
SHAPES = {"small": (256, 4, 4), "large": (1024, 12, 16)}
"""Width, layers, heads of the random models."""
BEGIN, END = "<!-- plan: begin -->", "<!-- plan: end -->"


def made(name: str, work: Path) -> Path:
    """The folder of a model: the demo's, or a random one with the demo's tokenizer."""
    demo = Path(demo_model())
    if name == "demo":
        return demo
    folder = work / name
    if not folder.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(demo)
        width, layers, heads = SHAPES[name]
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=8 * width // 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def seconds(work: Callable[[], Any]) -> float:
    """Processor seconds, the lower of two runs."""
    found = []
    for _ in range(2):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


def measured(name: str, work: Path) -> dict[str, Any]:
    """Processor seconds of each kind of pass over the same texts, prompts apart."""
    folder, found = made(name, work), {}
    for kind, rank in (("lora", 16), ("full", 0)):
        policy = load_policy(str(folder), lora_rank=rank, seed=0)
        policy.model.eval()
        texts = tokenize_rows(load_negatives(str(DEMO / "negatives.jsonl")), Renderer(policy.tokenizer))
        texts = texts.select(range(TEXTS))
        context = ScoringContext(policy.model, policy.trainable(), 1024, 0)
        coefficients = torch.ones(len(texts))
        gradient = partial(weighted_logprob_gradient, context, texts, coefficients)
        if kind == "lora":
            found["params"] = sum(p.numel() for p in policy.model.parameters() if not p.requires_grad)
            found["adapter"] = sum(p.numel() for p in context.parameters.values())
            found["tokens"] = sum(len(ids) for ids in texts["input_ids"])
            found["forward"] = seconds(partial(context.logprobs, texts))
            base, directions = context.logprobs(texts), [drawn(context, seed) for seed in (0, 1)]
            for method in ("fd", "exact"):
                score = partial(directional_derivatives, context, texts, directions, method=method, base=base)
                found[f"scores, {method}"] = seconds(score)
        found[f"gradient, {kind}"] = seconds(gradient)
        if kind == "lora":
            policy.model.enable_input_require_grads()
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
            policy.model.train()
            # checkpointing works in training mode alone, which scoring switches off; dropout is 0
            with patch("u2a.impact.gradient.evaluating", lambda _model: nullcontext()):
                found["gradient, lora, checkpointing"] = seconds(gradient)
    return found


def drawn(context: ScoringContext, seed: int) -> dict[str, torch.Tensor]:
    """A random direction."""
    torch.manual_seed(seed)
    return {name: torch.randn_like(p) for name, p in context.parameters.items()}


def predicted(one: dict[str, Any]) -> dict[str, float]:
    """Seconds of the same passes from the forward pass alone."""
    lora = Workload(one["params"], TEXTS, one["tokens"] / TEXTS)
    full, again = replace(lora, lora_rank=0), replace(lora, checkpointing=True)
    return {
        "gradient, lora": one["forward"] * lora.both / lora.forward,
        "gradient, lora, checkpointing": one["forward"] * again.both / lora.forward,
        "gradient, full": one["forward"] * full.both / lora.forward,
        **{f"scores, {m}": one["forward"] * SCORING_PASSES[m] for m in ("fd", "exact")},
    }


def write_table() -> None:
    """Predicted and measured, a line a pass, a column a model."""
    cells = json.loads(CELL.read_text())
    lines = [
        f"Command: `python benchmarks/plan.py` ({machine()}; one thread, processor seconds, {TEXTS} texts).",
        "",
        "| | " + " | ".join(f"{one['params'] / 1e6:.0f} M parameters" for one in cells.values()) + " |",
        "|" + "---|" * (len(cells) + 1),
    ]

    def line(what: str, of: Callable[[dict[str, Any]], str]) -> str:
        return f"| {what} | " + " | ".join(of(one) for one in cells.values()) + " |"

    lines.append(line("forward pass, s", lambda one: f"{one['forward']:.2f}"))
    lines.append(line("operations per second reached", lambda one: f"{reached(one):.2g}"))
    for what in predicted(next(iter(cells.values()))):

        def both(one: dict[str, Any], what: str = what) -> str:
            return f"{predicted(one)[what]:.2f} / {one[what]:.2f} ({predicted(one)[what] / one[what]:.2f})"

        lines.append(line(f"{what}, s: predicted / measured (ratio)", both))

    def adapter(one: dict[str, Any]) -> str:
        guess = Workload(one["params"], 1).trained_params
        return f"{guess / 1e6:.2f} / {one['adapter'] / 1e6:.2f} ({guess / one['adapter']:.2f})"

    lines.append(line("adapter of rank 16, M parameters: predicted / counted (ratio)", adapter))
    old = PAGE.read_text(encoding="utf-8")
    head, _, rest = old.partition(BEGIN)
    tail = rest.partition(END)[2]
    PAGE.write_text(head + "\n".join([BEGIN, *lines, END]) + tail, encoding="utf-8")
    print("\n".join(lines))


def reached(one: dict[str, Any]) -> float:
    """Operations per second of the forward pass."""
    return Workload(one["params"], TEXTS, one["tokens"] / TEXTS).forward * one["tokens"] / one["forward"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/plan"), help="where random models are kept")
    parser.add_argument("--table", action="store_true", help="only write docs/scaling.md from the cell")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        cells = json.loads(CELL.read_text()) if CELL.is_file() else {}
        for name in ("small", "demo", "large"):
            if name not in cells:
                cells[name] = measured(name, options.work)
                write_json(CELL, cells)
                print(name, cells[name], flush=True)
    write_table()


if __name__ == "__main__":
    main()
