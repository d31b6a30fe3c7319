"""What the workers of all peers share: the model, the texts, seconds and memory by phase, the result.

Runs in a peer's own environment, so it imports nothing of u2a. A worker is called as

    python run_PEER.py --setting NAME --texts texts.json --adapter FOLDER --work FOLDER

and prints one line of JSON. Phases: `load` (model and adapter), `factors` (what can be kept for other
queries), `query` (the query's gradient), `score` (one score for each negative). What is left out: imports,
reading the texts, one warm-up batch.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM

IGNORE = -100


class MeasuredRun:
    """Seconds and peak resident memory of one phase at a time, sampled as in u2a.runs.phase_cost."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        texts = json.loads(Path(options.texts).read_text())
        self.negatives, self.queries = texts["negatives"], texts["queries"]
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}
        self.loaded_bytes = 0
        self.phase, self._began = "", (0.0, 0.0)
        self._process = psutil.Process()
        threading.Thread(target=self._watch, daemon=True).start()

    def enter(self, phase: str) -> None:
        """Ends the current phase and begins `phase`; the same phase may be entered again and adds up."""
        if phase == self.phase:
            return
        now = time.perf_counter(), time.process_time()
        self._sample()
        if self.phase:
            for sums, end, begin in zip((self.seconds, self.cpu_seconds), now, self._began, strict=True):
                sums[self.phase] = sums.get(self.phase, 0.0) + end - begin
        self.phase, self._began = phase, now

    def ready(self, model: torch.nn.Module) -> None:
        """The model is there: reads all weights (a mapped file is not resident before), notes the memory that
        it takes, and runs one warm-up batch."""
        sum(float(p.detach().sum()) for p in model.parameters())
        self.enter("")
        self.loaded_bytes = self._process.memory_info().rss
        with torch.no_grad():
            summed_loss(model, padded(self.negatives[:4]))

    def report(self, scores: list[float]) -> None:
        """Prints the result; `scores` are in the order of the texts, positive = gradients point alike."""
        self.enter("")
        mib = 2**20
        print(
            json.dumps(
                {
                    "seconds": self.seconds,
                    "cpu_seconds": self.cpu_seconds,
                    "peak_mib": {name: peak / mib for name, peak in self.peak_bytes.items()},
                    "loaded_mib": self.loaded_bytes / mib,
                    "tokens": sum(len(row["input_ids"]) for row in self.negatives),
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "values": scores,
                }
            )
        )

    def _sample(self) -> None:
        phase, rss = self.phase, self._process.memory_info().rss
        if phase:
            self.peak_bytes[phase] = max(self.peak_bytes.get(phase, 0), rss)

    def _watch(self) -> None:
        while True:
            self._sample()
            time.sleep(0.05)


class SortedRows(Dataset):
    """Texts longest first, so that batches waste little on padding."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
        self.rows = [rows[i] for i in self.order]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.rows[position]

    def unsorted(self, values: Tensor) -> list[float]:
        """Values (N,) of the sorted rows, in the order that the rows came in."""
        out = torch.empty_like(values)
        out[torch.tensor(self.order)] = values
        return out.tolist()


def started(settings: tuple[str, ...]) -> MeasuredRun:
    """Reads the command line; the state of torch's random numbers is fixed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--setting", choices=settings, required=True)
    parser.add_argument("--batch", type=int, default=8, help="texts in a batch, where the peer counts texts")
    for name in ("--texts", "--adapter", "--work"):
        parser.add_argument(name, required=True)
    torch.manual_seed(0)
    return MeasuredRun(parser.parse_args())


def load_model(folder: str) -> PeftModel:
    """The base that the adapter names, with the adapter, float32, in eval mode, adapter weights trainable."""
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder, is_trainable=True).eval()


def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Right-padded (B, T): `input_ids`, `attention_mask`, `labels` (-100 on prompts and padding)."""
    width = max(len(row["input_ids"]) for row in rows)
    batch = {
        name: torch.zeros(len(rows), width, dtype=torch.int64) for name in ("input_ids", "attention_mask")
    }
    batch["labels"] = torch.full((len(rows), width), IGNORE, dtype=torch.int64)
    for b, row in enumerate(rows):
        ids, start = torch.tensor(row["input_ids"]), row["response_start"]
        batch["input_ids"][b, : len(ids)] = ids
        batch["attention_mask"][b, : len(ids)] = 1
        batch["labels"][b, start : len(ids)] = ids[start:]
    return batch


def summed_loss(model: torch.nn.Module, batch: dict[str, Tensor], *, sample: bool = False) -> Tensor:
    """−Σ log-prob of all texts' response tokens; with `sample`, of tokens drawn from the model there."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    logits, labels = logits.flatten(0, 1), batch["labels"][:, 1:].flatten()
    if sample:
        with torch.no_grad():
            drawn = torch.multinomial(logits.softmax(-1), 1)[:, 0]
        labels = torch.where(labels == IGNORE, labels, drawn)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
