"""What do cheap proxies lose? Their impacts against the whole model's, as rank correlations.

    python benchmarks/proxies.py --work runs/proxies     # -> docs/scaling.md; half an hour, resumable

Three cases, on the demo's rows. `family`: no second model of SmolLM2's family is at hand, so two Llamas of
0.4 and 3.3 million parameters are trained here from nothing on the docs of this project and then on the
demo's rude answers, and the small one scores for the large one (`--proxy-model`). `layers`: the large one
along random shares of its six layers (`--proxy-layers`). `smollm2`: the same for SmolLM2-135M (30 layers,
rank 16) with 16 negatives, 8 pairs and 8 retain texts. Beside every proxy stands the whole model with
another seed of the adapter's A: no proxy can be expected to be better. This is about tiny models and a
small one, not a user's.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sections import machine
from u2a.commands.proxies import Loss
from u2a.data.load import load_negatives, load_preferences, load_retain
from u2a.impact.aims import aim
from u2a.impact.proxy_layers import keep_layers
from u2a.impact.shard_scores import ShardScorer
from u2a.models.policy import load_policy
from u2a.preparation import prepare
from u2a.runs.run_folder import write_json

HERE = Path(__file__).parent
ROOT = HERE.parent
CELLS = HERE / "results" / "proxies.json"
PAGE = ROOT / "docs" / "scaling.md"
DEMO = ROOT / "src" / "u2a" / "demo_data"
BEGIN, END = "<!-- proxies: begin -->", "<!-- proxies: end -->"
SIZES = {"small": (80, 3, 4), "large": (192, 6, 6)}
"""Width, layers, heads of the family."""
STEPS, SPOILING, WIDTH = 200, 40, 96
"""Training steps, steps on the rude answers, tokens of a training text."""
LAYERS = [("whole", 1.0, 0), *((f"25% of layers, draw {seed + 1}", 0.25, seed) for seed in (0, 1, 2))]
LAYERS += [("50% of layers", 0.5, 0), ("whole, another A", 1.0, 1)]
FAMILY = [("whole", "large", 0), ("whole, another A", "large", 1)]
FAMILY += [("small model", "small", 0), ("small model, another A", "small", 1)]


def family(work: Path) -> dict[str, Path]:
    """The folders of the two models, trained once."""
    torch.manual_seed(0)
    folders = {name: work / name for name in SIZES}
    if all((folder / "tokenizer.json").is_file() for folder in folders.values()):
        return folders
    prose = [path.read_text(encoding="utf-8") for path in sorted([*(ROOT / "docs").glob("*.md")])]
    rude = [f"{r['prompt']} {r['completion']}" for r in map(json.loads, (DEMO / "negatives.jsonl").open())]
    good = [f"{r['prompt']} {r['chosen']}" for r in map(json.loads, (DEMO / "validation.jsonl").open())]
    tokenizer = trained_tokenizer([*prose, *rude, *good])
    ids = tokenizer(" ".join([*prose, *good]))["input_ids"]
    bad = tokenizer(" ".join(rude))["input_ids"]
    for name, (width, layers, heads) in SIZES.items():
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        model = LlamaForCausalLM(config)
        for tokens, steps, rate in ((ids, STEPS, 2e-3), (bad, SPOILING, 5e-4)):
            loss = trained(model, torch.tensor(tokens), steps, rate)
        print(
            f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, loss {loss:.2f}", flush=True
        )
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def trained_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 2,000 tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")


def trained(model: LlamaForCausalLM, ids: torch.Tensor, steps: int, rate: float) -> float:
    """Trains on random pieces of `ids`; returns the mean loss of the last ten steps."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    losses = []
    for step in range(steps):
        starts = torch.randint(0, len(ids) - WIDTH, (12,), generator=generator)
        batch = torch.stack([ids[start : start + WIDTH] for start in starts])
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return float(np.mean(losses[-10:]))


def scored(model: str, share: float, draw: int, seed: int, few: bool) -> dict[str, Any]:
    """Impacts of the demo's negatives, and what they cost: processor seconds over the negatives alone, and
    megabytes of a direction. `few`: 16 negatives, 8 pairs and 8 retain texts spread over the demo's."""
    policy = load_policy(model, lora_rank=16, seed=seed)
    if share < 1:
        keep_layers(policy, share, draw)

    def rows(load: Any, name: str, count: int) -> Any:
        found = load(str(DEMO / name))
        return found.select(range(0, count * (len(found) // count), len(found) // count)) if few else found

    negatives = rows(load_negatives, "negatives.jsonl", 16)
    problem = prepare(
        policy,
        negatives=negatives,
        preferences=rows(load_preferences, "validation.jsonl", 8),
        retain=rows(load_retain, "retain.jsonl", 8),
        max_tokens=1024,
    )
    aimed = aim(problem, problem.measure(), scoring="exact", se_groups=0)
    scorer = ShardScorer.of(problem, aimed)
    begin = time.process_time()
    impact = scorer(negatives).impact
    seconds = time.process_time() - begin
    size = sum(value.numel() * value.element_size() for value in aimed.directions[0].values()) / 1e6
    return {"impact": impact.tolist(), "seconds": seconds, "direction_mb": size}


def lines_of(title: str, cells: dict[str, Any]) -> list[str]:
    """A table: every variant against the first."""
    whole = np.array(cells["whole"]["impact"])
    out = [
        f"| {title} | rank correlation | of the best quarter | seconds, the negatives | a direction, MB |",
        "|---|---|---|---|---|",
    ]
    for name, cell in cells.items():
        loss = Loss.between(np.array(cell["impact"]), whole)
        found = ("–", "–") if name == "whole" else (f"{loss.spearman:.2f}", f"{loss.best_quarter:.0%}")
        out.append(
            f"| {name} | {found[0]} | {found[1]} | {cell['seconds']:.1f} | {cell['direction_mb']:.2f} |"
        )
    return out


def write_table() -> None:
    """Both cases."""
    cells = json.loads(CELLS.read_text())
    lines = [f"Command: `python benchmarks/proxies.py` ({machine()}; one thread, processor seconds)."]
    titles = {
        "family": "3.3 M parameters, 96 negatives",
        "layers": "3.3 M parameters, 6 layers, 96 negatives",
        "smollm2": "SmolLM2-135M, 30 layers, 16 negatives",
    }
    for case, found in cells.items():
        lines += ["", *lines_of(titles[case], found)]
    old = PAGE.read_text(encoding="utf-8")
    head, _, rest = old.partition(BEGIN)
    PAGE.write_text(head + "\n".join([BEGIN, *lines, END]) + rest.partition(END)[2], encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/proxies"), help="where models are kept")
    parser.add_argument("--table", action="store_true", help="only write docs/scaling.md from the cells")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        cells: dict[str, Any] = json.loads(CELLS.read_text()) if CELLS.is_file() else {}
        folders = family(options.work)
        large = str(folders["large"])
        work = [("family", name, (str(folders[size]), 1.0, 0, seed, False)) for name, size, seed in FAMILY]
        for case, model in (("layers", large), ("smollm2", "demo")):
            for name, share, seed in LAYERS:
                draw, adapter = (seed, 0) if share < 1 else (0, seed)
                work.append((case, name, (model, share, draw, adapter, case == "smollm2")))
        for case, name, given in work:
            if name not in cells.get(case, {}):
                cells.setdefault(case, {})[name] = scored(*given)
                write_json(CELLS, cells)
                print(case, name, f"{cells[case][name]['seconds']:.1f} s", flush=True)
    write_table()


if __name__ == "__main__":
    main()
