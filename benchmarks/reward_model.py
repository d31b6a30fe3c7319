"""A reward model for `--objective-reward-model`, trained with TRL: does it prefer what people preferred?

    python benchmarks/reward_model.py --data PATH/hh_harmless.jsonl --leave-out runs/main_job/split/*.jsonl
    python benchmarks/reward_model.py --table               # the cell -> docs/results.md

Needs `pip install 'u2a[baselines]'`. The demo model with a classification head in place of its output layer,
LoRA on every linear layer beside the head, the Bradley-Terry loss of TRL's RewardTrainer (Ouyang et al. 2022,
arXiv 2203.02155). The whole model goes to OUTPUT/model, as safetensors.

Prompts are split by a seed, all pairs of a prompt together; prompts of --leave-out, where a policy is
measured later, are in neither part. Texts are rendered by `Renderer`, as the scorer renders them, and pairs
with a longer text than --max-tokens are left out rather than cut: an answer's end is what is judged.

The figure is taken by `u2a.scorers.model_scorer` from the saved model, the way the objective reads it. Beside
it stands what the length of the answers alone would get: a reward model that does not beat it is not needed.
A run that was cut off goes on at its last checkpoint; the seconds are those since then.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl import RewardConfig, RewardTrainer

from sections import machine, write_section
from u2a.data.load import load_preferences, load_prompts
from u2a.data.render import Renderer
from u2a.data.validate import prompt_key
from u2a.evaluation.figure import Array, Figure
from u2a.models.demo_model import demo_model
from u2a.runs.run_folder import write_json
from u2a.scorers import Scorer, model_scorer

CELL = Path(__file__).parent / "results" / "reward_model.json"
SIDES = ("chosen", "rejected")
RANK = 16


def split_pairs(pairs: Dataset, renderer: Renderer, options: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Training pairs and held-out pairs, of different prompts, none of them left out or too long."""
    avoided = {prompt_key(prompt) for file in options.leave_out for prompt in load_prompts(file)["prompt"]}
    by_prompt: dict[bytes, list[int]] = {}
    for row, pair in enumerate(pairs):
        key = prompt_key(pair["prompt"])
        if key not in avoided and longest(pair, renderer) <= options.max_tokens:
            by_prompt.setdefault(key, []).append(row)
    keys = sorted(by_prompt)
    order = np.random.default_rng(options.seed).permutation(len(keys))
    groups = [by_prompt[keys[i]] for i in order]
    held_out = [row for group in groups[: options.held_out] for row in group]
    train = [row for group in groups[options.held_out :] for row in group][: options.pairs]
    if not train or not held_out:
        raise SystemExit(f"{len(groups)} prompts are too few for --held-out {options.held_out} and training")
    return pairs.select(train), pairs.select(held_out)


def tokens(pair: dict[str, Any], renderer: Renderer, side: str) -> list[int]:
    """Prompt and answer as a reward model reads them."""
    return renderer.whole_ids(pair["prompt"], pair[side])


def longest(pair: dict[str, Any], renderer: Renderer) -> int:
    """Tokens of the longer text of a pair."""
    return max(len(tokens(pair, renderer, side)) for side in SIDES)


def train(
    source: Path, tokenizer: Any, pairs: Dataset, renderer: Renderer, options: argparse.Namespace
) -> None:
    """Trains and writes OUTPUT/model."""
    rows = [{f"{side}_ids": tokens(pair, renderer, side) for side in SIDES} for pair in pairs]
    torch.manual_seed(options.seed)  # of the new head
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    folder = options.output / "checkpoints"
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(folder),
            per_device_train_batch_size=options.batch_size,
            num_train_epochs=options.epochs,
            learning_rate=options.learning_rate,
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            seed=options.seed,
            logging_steps=5,
            save_steps=options.save_steps,
            save_total_limit=1,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="SEQ_CLS"),
    )
    started = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    begin = time.process_time()
    trainer.train(resume_from_checkpoint=started)
    write_json(options.output / "training.json", {"seconds": time.process_time() - begin})
    made = options.output / "half-made"
    trainer.model.merge_and_unload().save_pretrained(made)
    tokenizer.save_pretrained(made)
    made.rename(options.output / "model")


def wins(chosen: Array, rejected: Array) -> Figure:
    """Share of pairs whose chosen answer is ahead, ties half."""
    values = (chosen > rejected) + 0.5 * (chosen == rejected)
    return Figure("accuracy", values, "higher", "share")


def accuracy(score: Scorer, pairs: Dataset) -> Figure:
    """Of the reward model on pairs."""
    prompts = list(pairs["prompt"])
    chosen, rejected = (score(prompts, list(pairs[side])) for side in SIDES)
    return wins(chosen, rejected)


def by_length(pairs: Dataset) -> Figure:
    """The longer answer for the better one, or the shorter, whichever is more often true of these pairs."""
    chosen, rejected = (np.array([len(text) for text in pairs[side]], float) for side in SIDES)
    return max(wins(chosen, rejected), wins(-chosen, -rejected), key=lambda figure: figure.value)


def make_cell(options: argparse.Namespace) -> dict[str, Any]:
    """Trains, unless OUTPUT/model is there already, and measures."""
    source = demo_model() if options.model == "demo" else Path(options.model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    renderer = Renderer(tokenizer, max_length=options.max_tokens)
    training, held_out = split_pairs(load_preferences(options.data), renderer, options)
    if not (options.output / "model").is_dir():
        train(source, tokenizer, training, renderer, options)
    score = model_scorer(str(options.output / "model"), "cpu")
    kept = ("max_tokens", "epochs", "learning_rate", "batch_size", "seed")
    return {
        "pairs": len(training),
        "held_out": len(held_out),
        "accuracy": accuracy(score, held_out).estimate(),
        "accuracy_training": accuracy(score, training).estimate(),
        "length_alone": by_length(held_out).estimate(),
        **json.loads((options.output / "training.json").read_text(encoding="utf-8")),
        **{name: getattr(options, name) for name in kept},
    }


def shown(estimate: Sequence[float]) -> str:
    """`0.620 [0.550, 0.690]`."""
    value, low, high = estimate[:3]
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def write_table(cell: dict[str, Any]) -> None:
    """Writes the section of docs/results.md."""
    lines = [
        "## A reward model for the reward objective",
        "",
        "Command: `python benchmarks/reward_model.py --data PATH/hh_harmless.jsonl --leave-out …` "
        f"({machine()}). {cell['seconds']:.0f} processor seconds of training.",
        "",
        f"SmolLM2-135M-Instruct with a classification head, LoRA of rank {RANK}, TRL's RewardTrainer: "
        f"{cell['pairs']} pairs of at most {cell['max_tokens']} tokens, {cell['epochs']:g} epochs, rate "
        f"{cell['learning_rate']:g}, {cell['batch_size']} pairs a step. Share of pairs whose chosen answer "
        "scores higher; 95 % bootstrap interval over pairs; held-out pairs are of other prompts.",
        "",
        "| scorer | held-out accuracy | on its training pairs |",
        "|---|---|---|",
        f"| reward model | {shown(cell['accuracy'])} (n = {cell['held_out']}) | "
        f"{shown(cell['accuracy_training'])} |",
        f"| length of the answer alone, the better direction | {shown(cell['length_alone'])} | – |",
    ]
    write_section("reward_model", lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="preference pairs, e.g. hh_harmless.jsonl")
    parser.add_argument("--output", type=Path, default=Path("runs/reward_model"))
    parser.add_argument("--model", default="demo", help="folder with safetensors, or demo")
    parser.add_argument("--leave-out", nargs="*", default=[], help="files whose prompts it must not see")
    parser.add_argument("--pairs", type=int, default=600, help="to train on, at most")
    parser.add_argument("--held-out", type=int, default=200, help="prompts of the held-out pairs")
    parser.add_argument("--max-tokens", type=int, default=192, help="of a prompt with its answer")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--save-steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cell", type=Path, default=CELL, help="where the figures go")
    parser.add_argument("--table", action="store_true", help="only write docs/results.md from the cell")
    options = parser.parse_args()
    if not options.table:
        if not options.data:
            parser.error("--data is missing")
        cell = make_cell(options)
        write_json(options.cell, cell)
        print(json.dumps(cell, indent=2))
        return
    write_table(json.loads(options.cell.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
