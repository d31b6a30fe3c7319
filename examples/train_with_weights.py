"""Unlearns with the weights of a finished run of `u2a align`, by `UnlearnTrainer` alone.

    python examples/train_with_weights.py u2a-demo/align --output unlearned
    torchrun --nproc_per_node 2 examples/train_with_weights.py u2a-demo/align --output unlearned

A step of two processes has twice the rows. On CPUs put ACCELERATE_USE_CPU=true before torchrun.

For other steps, another rate, or several devices, with weights that were made once. Left out: the retain
term, J, U and KL on the way, guards. `u2a align` has those; here the last step is what you get.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from peft import LoraConfig
from transformers import set_seed

from u2a import U2AConfig, UnlearnTrainer, load_negatives, load_policy


def main() -> None:
    """Reads the run, trains, saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder of `u2a align`")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="a folder, new")
    given = parser.parse_args()
    if given.output.exists():
        parser.error(f"{given.output} is there already")

    options = yaml.safe_load((given.run / "config.yaml").read_text(encoding="utf-8"))
    weights = pq.read_table(given.run / "weights.parquet", columns=["row", "weight"]).to_pydict()
    negatives = load_negatives(options["negatives"])
    if weights["row"] != negatives["row"]:
        raise SystemExit(f"{given.run}: its weights are not those of {options['negatives']}")
    weighted = negatives.remove_columns("weight").add_column("weight", weights["weight"])

    set_seed(given.seed)  # the adapter is drawn
    original = load_policy(options["model"], lora_rank=0)
    trainer = UnlearnTrainer(
        model=original.model,
        processing_class=original.tokenizer,
        args=U2AConfig(
            str(given.output),
            loss_type=options["loss"],
            max_length=options["max_length"],
            max_steps=given.steps,
            learning_rate=given.learning_rate,
            seed=given.seed,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=weighted,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    used = np.count_nonzero(trainer.weights)
    print(f"{used} of {len(weighted)} negatives have a weight; {given.steps} steps")
    trainer.train()
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"Written: {given.output}")


if __name__ == "__main__":
    main()
