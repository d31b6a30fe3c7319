"""U2A's weights in TRL's own trainers: DPO, KTO and SFT on the negatives that are worth unlearning.

    u2a align --model MODEL --negatives pairs.jsonl --preferences validation.jsonl … --output runs/align
    python examples/trl_weights.py runs/align --model MODEL --pairs pairs.jsonl --method kto --output out

TRL's trainers know no weight per example, so rows are drawn in proportion to their weights, which has the
same mean. What was left out: evaluation (`u2a evaluate out`), several epochs with a new draw for each.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig

from u2a import drawn_by_weight, load_preferences, weighted_negatives


def pairs_by_weight(negatives: Dataset, pairs: Dataset, seed: int) -> Dataset:
    """Pairs whose rejected answer is a negative of the run, drawn by that one's weight."""
    weight = {
        (str(row["prompt"]), row["completion"][0]["content"]): row["weight"] for row in negatives
    }  # the answer alone would mix up prompts
    weights = [weight.get((str(row["prompt"]), row["rejected"]), 0.0) for row in pairs]
    drawn = drawn_by_weight(pairs.add_column("weight", weights), seed=seed)
    return Dataset.from_list(
        [
            {
                "prompt": row["prompt"],
                "chosen": [{"role": "assistant", "content": row["chosen"]}],
                "rejected": [{"role": "assistant", "content": row["rejected"]}],
            }
            for row in drawn
        ]
    )


def rows_for(method: str, negatives: Dataset, pairs: Dataset, seed: int) -> Dataset:
    """What the trainer of `method` takes."""
    chosen = pairs_by_weight(negatives, pairs, seed)
    if method == "dpo":
        return chosen
    good = chosen.remove_columns("rejected").rename_column("chosen", "completion")
    if method == "sft":  # good answers to the prompts whose bad answer matters
        return good
    bad = drawn_by_weight(negatives, seed=seed).select_columns(["prompt", "completion", "label"])
    good = good.add_column("label", [True] * len(good)).cast(bad.features)
    return concatenate_datasets([good, bad]).shuffle(seed=seed)


def trainer_for(method: str, model: str, rows: Dataset, output: str, **options: Any) -> Any:
    """A trainer of TRL with a new adapter."""
    import trl

    kind = {"dpo": "DPO", "kto": "KTO", "sft": "SFT"}[method]
    if method == "kto":  # both kinds weigh the same in all
        bad = len(rows) - sum(rows["label"])
        options["desirable_weight"] = max(1.0, bad / max(1, len(rows) - bad))
        options["undesirable_weight"] = max(1.0, (len(rows) - bad) / max(1, bad))
    for name in ("bf16", "dataloader_pin_memory"):  # defaults that a CPU refuses
        options.setdefault(name, torch.cuda.is_available())
    args = getattr(trl, f"{kind}Config")(output, report_to="none", seed=0, **options)
    adapter = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return getattr(trl, f"{kind}Trainer")(model=model, args=args, train_dataset=rows, peft_config=adapter)


def main() -> None:
    """Draws the rows, trains, saves the adapter."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="run folder of `u2a align`")
    parser.add_argument("--model", required=True, help="the original model: folder or Hub id")
    parser.add_argument("--pairs", required=True, help="pairs whose rejected answers are the run's negatives")
    parser.add_argument("--method", choices=("dpo", "kto", "sft"), default="kto")
    parser.add_argument("--output", required=True, help="a folder for the adapter, new")
    parser.add_argument("--max-steps", type=int, default=-1, help="optimiser steps; -1 = one pass")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    given = parser.parse_args()
    if Path(given.output).exists():
        parser.error(f"{given.output} is there already")
    rows = rows_for(given.method, weighted_negatives(given.run), load_preferences(given.pairs), given.seed)
    options = {"max_steps": given.max_steps, "num_train_epochs": 1, "per_device_train_batch_size": 2}
    trainer = trainer_for(given.method, given.model, rows, given.output, **options)
    trainer.train()
    trainer.save_model(given.output)


if __name__ == "__main__":
    main()
