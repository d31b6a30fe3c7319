"""What computing a shared prompt once saves on preference pairs.

    python benchmarks/shared_prompts.py --data PATH/hh_harmless.jsonl   # 40 short pairs, about a minute

Log-probs of both answers of each pair under SmolLM2-135M-Instruct with an adapter, in the packed and in the
plain layout, one thread, processor time (not disturbed by other processes). What is left out: loading, and
the try-out that decides whether a model can pack.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from u2a.data.load import load_preferences
from u2a.data.packing import plan
from u2a.data.render import Renderer
from u2a.models.policy import load_policy
from u2a.passes import dataset as passes
from u2a.passes import packable
from u2a.runs.run_folder import write_json
from u2a.validation import pair_texts

RESULT = Path(__file__).parent / "results" / "shared_prompts.json"
MAX_CHARS, MAX_TOKENS = 400, 2048


def short(row: dict[str, Any]) -> bool:
    """As in main_job.py."""
    prompt = sum(len(turn["content"]) for turn in row["prompt"])
    return prompt + max(len(row["chosen"]), len(row["rejected"])) <= MAX_CHARS


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="preference pairs")
    parser.add_argument("--pairs", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy("demo", lora_rank=16)
    pairs = load_preferences(str(options.data)).filter(short).select(range(options.pairs))
    texts, _ = pair_texts(pairs, Renderer(policy.tokenizer, max_length=256))
    layout = plan(texts, MAX_TOKENS)
    batching = {"max_tokens": MAX_TOKENS, "pad_token_id": policy.tokenizer.pad_token_id}
    if not packable.can_pack(policy.model, texts, layout, batching["pad_token_id"]):
        raise SystemExit("this model cannot pack")
    seconds, values = {}, {}
    for name, worth in (("packed", 1.0), ("plain", 0.0)):
        passes._WORTH_PACKING = worth
        begin = time.process_time()
        values[name] = passes.dataset_logprobs(policy.model, texts, **batching)
        seconds[name] = time.process_time() - begin
    found = {
        "pairs": options.pairs,
        "tokens": {"packed": layout.tokens, "plain": layout.plain},
        "processor_seconds": seconds,
        "largest_difference": float((values["packed"] - values["plain"]).abs().max()),
    }
    write_json(RESULT, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
