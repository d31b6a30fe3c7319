"""`u2a demo`: everything on a small real model, with nothing of the user's own.

SmolLM2-135M-Instruct is spoiled by fine-tuning on bundled good and rude answers (the paper's original
model), then aligned from its negatives by the very command a user would type. What was left out: nothing is
cached between runs, so every figure is measured in the run that prints it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from u2a.commands.schemas import ALIGN
from u2a.commands.terminal import Bars, give, print_table, printable, say
from u2a.runs.run_folder import RunFolder, write_text

if TYPE_CHECKING:
    from u2a.models.policy import Policy
    from u2a.types import Message

SPOILING: dict[str, Any] = {"epochs": 3.0, "learning_rate": 1e-3, "batch_size": 8}
"""How the original model is made: enough to be rude at a glance."""

SETTINGS: dict[str, Any] = {
    "loss": "npo",
    "retain_loss": "nll",
    "select": "50%",
    "epochs": 2.0,
    "outer_steps": 1,
    "measurements": 3,
    "learning_rate": 2e-4,
    "max_length": 128,
}
"""What the demo passes to `align`; everything else is align's default."""


def run(values: Mapping[str, Any]) -> int:
    """Spoils the demo model, aligns it, and shows what happened."""
    begin = time.perf_counter()
    folder = Path(values["output"]).expanduser()
    RunFolder.check(folder, resume=False)
    data = Path(str(resources.files("u2a") / "demo_data"))
    folder.mkdir(parents=True, exist_ok=True)

    say("1/3  Spoiling SmolLM2-135M-Instruct with rude answers: this becomes the original model.")
    answers: dict[str, list[str]] = {"pretrained": [], "original": [], "aligned": []}
    prompts = _prompts(data)
    with Bars() as bars:
        policy = _spoil(data, folder / "original", values["seed"], prompts, answers, bars)
    del policy

    say("2/3  Aligning it from its negatives, as `u2a align` does.")
    from u2a.commands import align

    status = align.run(_align_values(data, folder, values["seed"]))
    if status > 1:
        return status

    say("3/3  What happened.")
    _answers_of(folder / "align" / "adapter", folder, prompts, answers)
    print_table(
        "Three prompts",
        ("prompt", "model", "answer"),
        [
            (printable(_content(prompt)) if number == 0 else "", model, printable(answers[model][index]))
            for index, prompt in enumerate(prompts)
            for number, model in enumerate(answers)
        ],
    )
    _keep_answers(folder / "align", prompts, answers)
    _worthwhile(data, folder / "align")
    minutes = (time.perf_counter() - begin) / 60
    give(minutes=minutes, report=str(folder / "align" / "report.html"))
    say(f"Whole demo: {minutes:.1f} minutes.", essential=True)
    say(f"Open {folder / 'align' / 'report.html'}", essential=True)
    return status


def _prompts(data: Path) -> list[list[Message]]:
    from u2a.data.load import load_prompts

    return load_prompts(str(data / "prompts.jsonl"))["prompt"]


def _content(prompt: list[Message]) -> str:
    return prompt[-1]["content"]


def _spoil(
    data: Path,
    output: Path,
    seed: int,
    prompts: list[list[Message]],
    answers: dict[str, list[str]],
    bars: Bars,
) -> Policy:
    """Fine-tunes the pretrained model on the mixture; writes the adapter that makes it the original."""
    from datasets import concatenate_datasets

    from u2a.data.collate import tokenize_rows
    from u2a.data.load import load_negatives, load_retain
    from u2a.data.render import Renderer
    from u2a.evaluation.answers import answer
    from u2a.models.policy import load_policy
    from u2a.training.finetune import fine_tune

    policy = load_policy("demo", lora_rank=16, seed=seed)
    renderer = Renderer(policy.tokenizer, max_length=SETTINGS["max_length"])
    answers["pretrained"] += [answer(policy, renderer, prompt) for prompt in prompts]
    columns = ["row", "id", "prompt", "response"]
    parts = [
        load_negatives(str(data / "negatives.jsonl")).select_columns(columns),
        load_retain(str(data / "good.jsonl")).select_columns(columns),
    ]
    mixture = tokenize_rows(concatenate_datasets(parts), renderer)
    fine_tune(policy, mixture, seed=seed, task=bars.task, **SPOILING)
    answers["original"] += [answer(policy, renderer, prompt) for prompt in prompts]
    policy.save(output)
    return policy


def _align_values(data: Path, folder: Path, seed: int) -> dict[str, Any]:
    given = {
        "model": str(folder / "original"),
        "negatives": str(data / "negatives.jsonl"),
        "preferences": str(data / "validation.jsonl"),
        "test": str(data / "test.jsonl"),
        "retain": str(data / "retain.jsonl"),
        "output": str(folder / "align"),
        "seed": seed,
        **SETTINGS,
    }
    return ALIGN.resolve(None, given)


def _answers_of(
    adapter: Path, folder: Path, prompts: list[list[Message]], answers: dict[str, list[str]]
) -> None:
    """Answers of the aligned model, loaded from disk as a user would."""
    from peft import PeftModel

    from u2a.data.render import Renderer
    from u2a.evaluation.answers import answer
    from u2a.models.policy import load_policy

    policy = load_policy(str(folder / "original"), lora_rank=0, trained=False)
    policy.model = PeftModel.from_pretrained(policy.model, str(adapter))
    renderer = Renderer(policy.tokenizer, max_length=SETTINGS["max_length"])
    answers["aligned"] += [answer(policy, renderer, prompt) for prompt in prompts]


def _keep_answers(run: Path, prompts: list[list[Message]], answers: Mapping[str, list[str]]) -> None:
    """Writes the answers into the run, as `evaluate` does, and the report again with them."""
    import json

    from u2a.report.html import write_report

    lines = [
        {"model": model, "prompts": "prompts.jsonl", "prompt": place, "asked": _content(prompt), "text": text}
        for model, texts in answers.items()
        for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    write_text(run / "answers.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_report(run)


def _worthwhile(data: Path, run: Path) -> None:
    """The most and least worthwhile negatives, and whether the flagged ones got low weight."""
    import json

    import pyarrow.parquet as pq

    table = pq.read_table(run / "impact.parquet").to_pydict()
    weight = pq.read_table(run / "weights.parquet", columns=["weight"]).to_pydict()["weight"]
    lines = (data / "negatives.jsonl").read_text(encoding="utf-8").splitlines()
    flags = [json.loads(line)["flag"] for line in lines]
    order = np.argsort(-np.asarray(table["impact"]), kind="stable")
    for title, rows in (
        ("Most worth unlearning", order[:5]),
        ("Least worth unlearning", order[-5:][::-1]),
    ):
        print_table(
            title,
            ("response", "flag", "impact", "utility cost", "weight"),
            [
                (
                    printable(table["response"][i]),
                    flags[i] or "–",
                    f"{table['impact'][i]:.3g}",
                    f"{table['utility_cost'][i]:.3g}",
                    f"{weight[i]:.2f}",
                )
                for i in rows
            ],
        )
    flagged = np.array([bool(flag) for flag in flags])
    weights = np.asarray(weight)
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order))
    auc = np.mean([(rank[i] > rank[~flagged]).mean() for i in np.flatnonzero(flagged)])
    say(
        "Flagged negatives (mislabelled or harmless on purpose): "
        f"mean weight {weights[flagged].mean():.2f} against {weights[~flagged].mean():.2f} of the others; "
        f"{int((weights[flagged] > 0).sum())} of {flagged.sum()} selected. A flagged one ranks below an "
        f"unflagged one with probability {auc:.2f} (0.5 = impact cannot tell them)."
    )
