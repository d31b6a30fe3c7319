"""Does llama.cpp's converter take what `u2a align --merge` writes, and is the GGUF file that model?

    python benchmarks/llama_cpp.py --work runs/llama_cpp     # -> docs/trl.md; about 5 minutes, 2 GB of disk

The converter is not on PyPI by itself; the source archive of llama-cpp-python holds llama.cpp's, which is
fetched (77 MB) and run as it is, in a process of its own. The merged model is the demo's with a random LoRA
adapter folded in by u2a. The file is read back by transformers, which knows nothing of the merged folder, and
its logits are compared with those of the adapter before it was merged.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file

from sections import machine
from u2a import load_policy
from u2a.commands.align import save_merged
from u2a.models.demo_model import demo_model
from u2a.runs.run_folder import write_json

HERE = Path(__file__).parent
CELL = HERE / "results" / "llama_cpp.json"
PAGE = HERE.parent / "docs" / "trl.md"
DEMO = HERE.parent / "src" / "u2a" / "demo_data"
BEGIN, END = "<!-- llama_cpp: begin -->", "<!-- llama_cpp: end -->"
VERSION = "0.3.36"
ARCHIVE = f"llama_cpp_python-{VERSION}.tar.gz"
INDEX = "https://pypi.org/simple/llama-cpp-python/"
SENTENCEPIECE = "sentencepiece==0.2.3"
FORMATS = ("f32", "bf16", "q8_0")
TEXTS = 16


def converter(work: Path) -> Path:
    """llama.cpp's own script out of the archive, whose digest the index names, and what it imports."""
    script = work / ARCHIVE.removesuffix(".tar.gz") / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"
    if not script.is_file():
        with urllib.request.urlopen(INDEX, timeout=60) as page:
            found = re.search(rf'href="(\S+/{re.escape(ARCHIVE)})#sha256=(\w+)"', page.read().decode())
        if found is None:
            raise SystemExit(f"{INDEX} has no {ARCHIVE}: set VERSION to one that it has")
        with urllib.request.urlopen(found[1], timeout=600) as answer:
            content = answer.read()
        if hashlib.sha256(content).hexdigest() != found[2]:
            raise SystemExit(f"{ARCHIVE} is not what {INDEX} says it is")
        (work / ARCHIVE).write_bytes(content)
        with tarfile.open(work / ARCHIVE) as archive:
            archive.extractall(work, filter="data")
    if not (work / "imports").is_dir():  # the converter asks for it before it finds tokenizer.json
        where = ["--no-deps", "--target", str(work / "imports")]
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *where, SENTENCEPIECE], check=True)
    return script


def merged(work: Path) -> Path:
    """What `--merge` writes of an adapter that changes the model, and beside it the adapter's logits."""
    if not (work / "logits.pt").is_file():
        policy = load_policy(demo_model(), lora_rank=8, seed=0)
        for parameter in (p for name, p in policy.trainable().items() if "lora_B" in name):
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
        rows = (DEMO / "negatives.jsonl").read_text(encoding="utf-8").splitlines()[:TEXTS]
        texts = [policy.tokenizer(json.loads(row)["prompt"])["input_ids"] for row in rows]
        with torch.no_grad(), policy.reference() as reference:
            original = logits_of(reference, texts)
        found = {"texts": texts, "adapter": logits_of(policy.model, texts), "original": original}
        save_merged(policy, work)
        torch.save(found, work / "logits.pt")
    return work / "merged"


@torch.no_grad()
def logits_of(model: Any, texts: list[list[int]]) -> torch.Tensor:
    """Logits (T, V) of all tokens of the texts, one text after the other."""
    return torch.cat([model(torch.tensor([ids])).logits[0].float() for ids in texts])


def against(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    """How far `after` is from `before`, both (T, V): the largest difference of a logit, the mean KL in nats,
    and the share of tokens with the same likeliest next one."""
    old, new = before.log_softmax(-1), after.log_softmax(-1)
    return {
        "logit": float((before - after).abs().max()),
        "kl": float((old.exp() * (old - new)).sum(-1).mean()),
        "same": float((before.argmax(-1) == after.argmax(-1)).float().mean()),
    }


def measured(work: Path, kind: str) -> dict[str, Any]:
    """The merged model in one format of numbers: how it was taken, and how far its logits are."""
    folder, file = merged(work), work / f"merged-{kind}.gguf"
    words = [converter(work), folder, "--outtype", kind, "--outfile", file]
    paths = {"PYTHONPATH": str(work / "imports"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *map(str, words)], env=paths, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"convert_hf_to_gguf.py --outtype {kind} failed:\n{done.stderr[-2000:]}")
    given = load_file(folder / "model.safetensors")
    tensors = gguf.GGUFReader(file).tensors
    kept = torch.load(work / "logits.pt", weights_only=True)
    after = logits_of(load_policy(file, lora_rank=0).model, kept["texts"])
    return {
        "tensors": len(tensors),
        "parameters": sum(int(tensor.n_elements) for tensor in tensors),
        "given": [len(given), sum(tensor.numel() for tensor in given.values())],
        "tokens": len(after),
        "mib": file.stat().st_size / 2**20,
        **against(kept["adapter"], after),
        "original": against(kept["original"], after),
    }


def write_table() -> None:
    """The section of docs/trl.md, from the kept cells."""
    cells = json.loads(CELL.read_text())
    one = next(iter(cells.values()))
    lines = [
        f"Command: `python benchmarks/llama_cpp.py` ({machine()}): `convert_hf_to_gguf.py` of llama.cpp as "
        f"llama-cpp-python {VERSION} ships it, on SmolLM2-135M-Instruct with a random adapter of rank 8 "
        f"folded in; {one['tokens']} tokens of {TEXTS} prompts. The file, read by transformers, is compared "
        "with the adapter before the merge, and in the last column with the original model.",
        "",
        "| outtype | MiB | tensors, in and out | parameters, in and out | largest difference of a logit "
        "| KL, nats a token | same likeliest token | KL to the original |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, cell in cells.items():
        lines.append(
            f"| {kind} | {cell['mib']:.0f} | {cell['given'][0]}, {cell['tensors']} | {cell['given'][1]:,}, "
            f"{cell['parameters']:,} | {cell['logit']:.2g} | {cell['kl']:.1g} | {cell['same']:.1%} | "
            f"{cell['original']['kl']:.2f} |"
        )
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(head + "\n".join([BEGIN, *lines, END]) + rest.partition(END)[2], encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/llama_cpp"), help="what is fetched and made")
    parser.add_argument("--table", action="store_true", help="only write docs/trl.md from the cells")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        options.work.mkdir(parents=True, exist_ok=True)
        write_json(CELL, {kind: measured(options.work, kind) for kind in FORMATS})
    write_table()


if __name__ == "__main__":
    main()
