"""Does any row, configuration or file crash u2a, hang it, or show a traceback?

    pip install '.[fuzz]'
    python benchmarks/fuzz/run.py --minutes 20                # goes on where the last run ended
    python benchmarks/fuzz/run.py --minutes 5 --target files

Coverage-guided fuzzing with atheris (libFuzzer) of three targets (targets.py): row validators, config
validators, file loaders. The only accepted outcomes are rows or values, and a `UserError`, within
worker.SLOW seconds. A target is fuzzed in parts, each a process with its own seed, until it has had GOALS
inputs; the corpus that coverage built is kept in --work between them. Writes inputs, seconds, edges, features
and findings to results/fuzz.json after every part; the shortest input of each finding is in --work/findings.
Exit status 1 where there are findings; once they are mended, remove --work and the result and run again.

Not fuzzed: commands, models, the network. Inputs are at most MOST_BYTES long, so faults of size are not
looked for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import seeds

from u2a.runs.run_folder import write_json

HERE = Path(__file__).parent
RESULT = HERE.parent / "results" / "fuzz.json"
GOALS = {"rows": 1_000_000, "config": 250_000, "files": 12_000}
"""Inputs of each target."""
PART = {"rows": 250_000, "config": 50_000, "files": 3_000}
"""Inputs of one process."""
MOST_BYTES = 4096
HANG = 30
"""Seconds after which libFuzzer ends the process."""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--target", choices=list(GOALS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    kept = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    parts: list[dict[str, Any]] = kept.get("parts", [])
    for target in options.target or list(GOALS):
        while (missing := GOALS[target] - _total(parts, target, "inputs")) > 0 and time.monotonic() < ends:
            seed = 1 + options.seed + sum(part["target"] == target for part in parts)
            room = max(1, int(ends - time.monotonic()))
            parts.append(_part(target, min(PART[target], missing), seed, room, options.work))
            write_json(RESULT, _summary(parts, options.work))
    print(json.dumps({k: v for k, v in _summary(parts, options.work).items() if k != "parts"}, indent=2))
    return 1 if _findings(options.work) or any(part["died"] for part in parts) else 0


def _part(target: str, inputs: int, seed: int, seconds: int, work: Path) -> dict[str, Any]:
    """One process of libFuzzer; what it did."""
    corpus, artifacts = work / "corpus" / target, work / "artifacts"
    for folder in (corpus, artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    for data in seeds.INPUTS[target]():
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    dictionary = work / "words.dict"
    dictionary.write_text(seeds.dictionary())
    flags = [
        *(f"-runs={inputs}", f"-seed={seed}", f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}"),
        *(f"-timeout={HANG}", "-rss_limit_mb=4096", "-print_final_stats=1", f"-dict={dictionary}"),
        f"-artifact_prefix={artifacts}/{target}-",
    ]
    command = [sys.executable, str(HERE / "worker.py"), target, str(work / "findings"), *flags, str(corpus)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    print(f"{target}: {inputs} inputs, seed {seed}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    return {"target": target, "seed": seed, **_read(done.stderr), "died": _death(done)}


def _read(printed: str) -> dict[str, Any]:
    """Inputs, seconds, edges and features from libFuzzer's own lines."""
    status = re.findall(r"^#(\d+)\s.*?cov: (\d+) ft: (\d+) corp: (\d+)", printed, flags=re.M)
    inputs, edges, features, corpus = map(int, status[-1]) if status else (0, 0, 0, 0)
    done = re.search(r"^Done (\d+) runs in (\d+) second", printed, flags=re.M)
    slowest = re.search(r"slowest_unit_time_sec:\s+(\d+)", printed)
    return {
        "inputs": int(done[1]) if done else inputs,
        "seconds": int(done[2]) if done else None,
        "edges": edges,
        "features": features,
        "corpus": corpus,
        "slowest_seconds": int(slowest[1]) if slowest else None,
    }


def _death(done: subprocess.CompletedProcess[str]) -> str:
    """How the process ended that did not end well, with libFuzzer's reason; else nothing."""
    if done.returncode == 0:
        return ""
    reason = re.findall(r"ERROR: libFuzzer: .*|Test unit written to .*|\w*Error: .*", done.stderr)
    return f"exit status {done.returncode}: {'; '.join(reason)[:400] or done.stderr[-400:]}"


def _summary(parts: list[dict[str, Any]], work: Path) -> dict[str, Any]:
    targets = {}
    for name in dict.fromkeys(part["target"] for part in parts):
        own = [part for part in parts if part["target"] == name]
        targets[name] = {
            "inputs": _total(parts, name, "inputs"),
            "seconds": _total(parts, name, "seconds"),
            "edges": max(part["edges"] for part in own),
            "features": max(part["features"] for part in own),
            "slowest_seconds": max(part["slowest_seconds"] or 0 for part in own),
            "processes": len(own),
        }
    versions = {name: version(name) for name in ("atheris", "datasets", "pyarrow", "pyyaml")}
    return {
        "machine": {"python": platform.python_version(), "cores": os.cpu_count(), **versions},
        "targets": targets,
        "findings": _findings(work),
        "parts": parts,
    }


def _total(parts: list[dict[str, Any]], target: str, key: str) -> int:
    return sum(part[key] or 0 for part in parts if part["target"] == target)


def _findings(work: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((work / "findings").glob("*.json"))]


if __name__ == "__main__":
    sys.exit(main())
