"""What else changed in four finalists: privacy, how soon it is all back, rounding, answers, capabilities.

    python benchmarks/study/finalists.py --data ../shared/data      # resumable: run it again
    python benchmarks/study/finalists.py --data … --groups relearning    # a second process takes some
    python benchmarks/study/finalists.py --table                         # -> docs/results.md

u2a with npo, u2a joint, uniform npo and DPO on the validation pairs, as in the study's main case, one seed,
made again by `u2a compare --keep-models` and measured by `u2a evaluate` beside the original model, in groups
of metrics whose figures are kept in git as they come: membership inference, 100 negatives against 100 answers
of the same kind that no model saw; relearning of the 100 in 8 steps; lm-evaluation-harness on 100 questions
of TruthfulQA, true against false answer (a local task, since no hub is reachable here); 16 answers; weights
rounded to 8 and 4 bits. Without the last about two hours on one core, half with two processes. Needs
`u2a[harness,baselines]`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
FOUND = HERE.parent / "results" / "study" / "finalists"
FINALISTS = ("u2a npo", "u2a joint", "uniform npo", "dpo validation")
QUESTIONS = NEGATIVES = 100
RELEARN_STEPS = 8
GROUPS = {
    "changes": "preference,perplexity,kl,forgetting",
    "membership": "membership",
    "relearning": "relearning",
    "harness": "harness",
    "answers": "fluency",
    "rounding": "rounding",
}
"""What one run of `u2a evaluate` measures; those that the issue of the study asks for first."""
FIGURES = (
    *("margin", "accuracy", "chosen_logprob", "perplexity_retain", "kl", "negative_logprob"),
    *("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus"),
    *("relearned_logprob", "relearned_gap", "relearned_at"),
    *("margin_8bit", "margin_4bit", "perplexity_retain_4bit"),
    *("answer_tokens", "answer_empty", "answer_repetition", "answer_overlap", "answer_distinct_2"),
    "harness_true_or_false_acc",
)


def u2a(*words: str) -> None:
    """Runs the command; its own message says what went wrong."""
    if subprocess.run([sys.executable, "-m", "u2a.cli", *words], check=False).returncode not in (0, 1):
        raise SystemExit(f"u2a {words[0]} did not finish; the same command goes on")


def go_on(folder: Path) -> list[str]:
    """`--resume` where a run has begun."""
    return ["--resume"] if (folder / "config.yaml").is_file() else []


def run_all(data: Path, work: Path, groups: Sequence[str] = tuple(GROUPS)) -> None:
    """Makes the models; measures every group that is not there yet, and keeps its numbers."""
    from study_table import picked_rate

    from cases import read_parts
    from study import CELLS, prepared
    from u2a.runs.run_folder import write_json

    missing = [group for group in groups if not (FOUND / f"{group}.json").is_file()]
    if not missing:
        return
    config, _ = prepared("hh_harmless", data, work)
    folder = work / "study" / "finalists"
    folder.mkdir(parents=True, exist_ok=True)
    named = {each.get("name", each["method"]): each for each in config["methods"]}
    rates = {name: picked_rate(CELLS / "hh_harmless", name) for name in FINALISTS}
    if without := [name for name, rate in rates.items() if not rate]:
        raise SystemExit(f"run the main case first: no rate yet for {', '.join(without)}")
    config["methods"] = [{**named[name], "rate": rate} for name, rate in rates.items()]
    config.pop("cells")
    config.update(seeds=1, keep_models=True)
    (folder / "compare.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    made = folder / "models"
    u2a("compare", "--config", str(folder / "compare.yaml"), "--output", str(made), *go_on(made))

    other = read_parts(data / "hh_harmless.jsonl", work / "split")["other rejected"]
    negatives = Path(config["negatives"]).read_text().splitlines()
    texts = {"negatives": negatives, "held_out_negatives": [json.dumps(row) for row in other]}
    for name, lines in texts.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines[:NEGATIVES]))
    tasks = write_task(data / "truthfulqa_pairs.jsonl", folder / "tasks")
    models = {str(made / "models" / f"{name}-{rate:g}-seed-0"): name for name, rate in rates.items()}
    words = {
        "original": config["model"],
        "test": config["test"],
        "negatives": str(folder / "negatives.jsonl"),
        "retain": config["retain"],
        "held-out-negatives": str(folder / "held_out_negatives.jsonl"),
        "answers": "16",
        "relearn-steps": str(RELEARN_STEPS),
        "round-bits": "8,4",
        "harness-tasks": "true_or_false",
        "harness-include": str(tasks),
        "max-length": "256",
    }
    FOUND.mkdir(exist_ok=True)
    for group in missing:
        out = folder / group
        given = {**words, "metrics": GROUPS[group], "output": str(out)}
        flags = [part for key, value in given.items() for part in (f"--{key}", value)]
        u2a("evaluate", *models, *flags, *go_on(out))
        found = json.loads((out / "evaluation.json").read_text())["models"]
        of_path = {Path(model).name: name for model, name in models.items()} | {"original": "original"}
        kept = {
            of_path[model]: {k: v for k, v in each["figures"].items() if k in FIGURES}
            for model, each in found.items()
        }
        write_json(FOUND / f"{group}.json", {"rates": rates, "models": kept})


def write_task(pairs: Path, folder: Path) -> Path:
    """A task of lm-evaluation-harness: which of two answers is likelier per byte, the true one first."""
    folder.mkdir(exist_ok=True)
    rows, seen = [], set()
    for line in pairs.read_text().splitlines():
        row = json.loads(line)
        if row["prompt"] not in seen:  # one pair a question
            seen.add(row["prompt"])
            rows.append({"question": row["prompt"], "answers": [row["chosen"], row["rejected"]]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:QUESTIONS]))
    task = {
        "task": "true_or_false",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_choice": "{{answers}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (folder / "true_or_false.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    return folder


def write_table() -> None:
    """A line a figure, a column a model; in bold what changed beyond its interval."""
    from sections import machine, write_section

    names = ["original", *FINALISTS]
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    missing = []
    for group in GROUPS:
        if (path := FOUND / f"{group}.json").is_file():
            for name, figures in json.loads(path.read_text())["models"].items():
                found[name] |= figures
        else:
            missing.append(group)
    lines = [
        "## Four finalists: what else changed",
        "",
        f"Command: `python benchmarks/study/finalists.py --data …` ({machine()}); what it does stands at its "
        "head. In bold: the paired change from the original model has a 95 % interval without 0. One seed.",
        "",
        f"| figure | unit | {' | '.join(names)} |",
        "|" + "---|" * (len(names) + 2),
    ]
    for figure in FIGURES:
        if any(figure in found[name] for name in names):
            given = found["original"].get(figure) or next(
                found[n][figure] for n in names if figure in found[n]
            )
            cells = [shown(figure, found[name].get(figure)) for name in names]
            arrow = {"higher": "↑", "lower": "↓"}.get(given["better"], "")
            lines.append(f"| `{figure}` {arrow} | {given['unit']} | {' | '.join(cells)} |")
    if missing:
        lines += ["", f"Not finished: {', '.join(missing)}."]
    write_section("finalists", lines)


def shown(name: str, figure: dict[str, Any] | None) -> str:
    """The value, in bold where its change is beyond noise."""
    if figure is None:
        return "–"
    if figure["value"] is None:  # infinite
        return f"over {RELEARN_STEPS}" if name == "relearned_at" else "–"
    change, value = figure.get("change"), f"{figure['value']:.3f}"
    beyond = bool(change) and change["low"] is not None and (change["low"] > 0 or change["high"] < 0)
    return f"**{value}**" if beyond else value


def main() -> None:
    """Command line."""
    from cases import options_of

    options = options_of(__doc__, lambda parser: parser.add_argument("--groups", nargs="+", choices=GROUPS))
    if options.table:
        write_table()
    else:
        run_all(options.data, options.work.resolve(), options.groups or tuple(GROUPS))


if __name__ == "__main__":
    main()
