"""Options that one command has to itself. Those that commands share are in `u2a.config`."""

from __future__ import annotations

from dataclasses import dataclass

from u2a.commands.comparison_metrics import CORE_METRICS, usable_metrics
from u2a.config import LARGEST_SEED, MOST_REPETITION_RISE, option
from u2a.evaluation import METRICS


@dataclass(frozen=True)
class MergeOptions:
    """Further output: what `align` writes besides the adapter."""

    merge: bool = option(False, "Also write the full model with the adapter merged in, to merged/.")


@dataclass(frozen=True)
class PoolOptions:
    """Pools larger than memory, and several machines: negatives streamed shard by shard."""

    pool: str = option(
        "",
        "Bad answers too many for memory, in place of --negatives: read, scored and kept shard by shard; "
        "the best ones go to selected.jsonl.",
    )
    shard_rows: int = option(
        4096, "Rows of the pool per shard; each shard is scored and saved as one unit.", least=1
    )
    keep: int = option(10_000, "How many rows of the pool are kept as the best.", least=1)
    engine: str = option(
        "here", "Where shards are scored: here, or by ray, on the processes of a cluster.", ("here", "ray")
    )
    workers: int = option(
        0,
        "Scoring processes of --engine ray, each with its own copy of the model; 0 = as many as fit.",
        least=0,
    )


@dataclass(frozen=True)
class ProxyOptions:
    """Cheaper proxies: what computes the scores instead of the whole model."""

    proxy_model: str = option(
        "", "A smaller model of the same family that computes the scores instead of --model."
    )
    proxy_layers: str = option(
        "100%", "Share of the layers used for scoring, chosen at random with --seed; 100% = all."
    )
    proxy_check: int = option(
        64,
        "Rows, chosen with --seed, that the whole --model scores too, to show what a proxy loses; 0 = none.",
        least=0,
    )


@dataclass(frozen=True)
class CheckOptions:
    """Check: what is read. Nothing is written."""

    negatives: str = option("", "Bad answers: file, folder, Hub id, or - for standard input.")
    preferences: str = option("", "Preference pairs for validation, or what --objective takes.")
    test: str = option("", "Held-out pairs.")
    retain: str = option("", "Good texts to keep.")
    objective: str = option("preference", "As in align: nll takes preferred answers, reward takes prompts.")
    model: str = option("", "Model whose tokenizer counts tokens; without it, length is not checked.")
    template: str = option("auto", "Chat template: the tokenizer's own, or raw text.", ("auto", "none"))
    max_length: int = option(512, "Longest prompt + response, in tokens.", least=2)


@dataclass(frozen=True)
class SplitOptions:
    """Split: how a file of preference pairs is cut."""

    output: str = option("", "Folder for the parts; must be empty or new.")
    seed: int = option(0, "Seed of the split.", least=0, most=LARGEST_SEED)
    validation: int = option(64, "Number of prompts whose pairs go to validation.", least=1)
    test: int = option(128, "Number of prompts whose pairs are held out for the test.", least=1)
    train: int = option(0, "Training prompts for the mixture; 0 = all the rest.", least=0)
    chosen_fraction: float = option(0.35, "Share of good answers in the original model's mixture.")


@dataclass(frozen=True)
class ReportOptions:
    """Report: what it shows, and where it is written."""

    text: bool = option(True, "Show the rows' text, answers, and whole paths.")
    output: str = option(
        "", "A new file for the page; empty = report.html in the run folder. Needed for several runs."
    )
    plots: str = option(
        "", "Also draw the figures for a paper, into this new folder; needs the extra `plots`."
    )
    format: str = option("png", "Format of --plots.", ("png", "svg"))


@dataclass(frozen=True)
class VerifyOptions:
    """Verification: how many subsets are unlearned for real, and what is compared with them."""

    subsets: int = option(16, "Subsets of the negatives to unlearn for real.", least=4)
    subset_share: str = option("25%", "Negatives in each subset: a percentage, or a number.")
    singles: int = option(0, "Single negatives to unlearn for real as well.", least=0)
    seeds: int = option(1, "Seeds of the inner run for every subset.", least=1)
    repeats: int = option(
        2, "More seeds for the first subset: they tell how much of the differences is noise.", least=0
    )
    estimators: str = option(
        "", "Estimators to compare, by commas, the judged one first; or all. Empty = what --curvature says."
    )
    embedding_model: str = option(
        "",
        "Sentence-embedding model of the control `embedding`, a folder or a Hub id such as "
        "sentence-transformers/all-MiniLM-L6-v2; needs the extra `embeddings`. Empty = leave it out.",
    )
    processes: int = option(1, "Processes that share the runs; each loads the model.", least=1)


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluation: what models are measured on, and how they answer."""

    original: str = option("", "Original model; empty = what the first run folder of `u2a align` began with.")
    metrics: str = option(
        "",
        f"Metrics by commas, of {', '.join(METRICS)}, or your own: module:Class, or the name of an installed "
        "one; empty = all of u2a's that have data.",
    )
    test: str = option("", "Held-out pairs: preference, and the prompts that are answered.")
    negatives: str = option("", "Bad answers that were unlearned: forgetting.")
    held_out_negatives: str = option("", "Similar bad answers that no model has seen: membership inference.")
    retain: str = option("", "Good texts to keep: perplexity and KL.")
    text: str = option("", "Plain text, one a line: perplexity.")
    safe_prompts: str = option("", "Prompts that should be answered; XSTest's file works: over-refusal.")
    unsafe_prompts: str = option("", "Prompts that should be refused; XSTest's file works: attack success.")
    answers: int = option(
        64, "Most prompts of each kind that each model answers, drawn by the seed; 0 = all.", least=0
    )
    max_new_tokens: int = option(128, "Longest answer, in tokens.", least=1)
    temperature: float = option(0.0, "Sampling temperature; 0 = greedy.", least=0)
    generation_batch: int = option(8, "Prompts answered at once.", least=1)
    template: str = option(
        "run",
        "Chat template: the tokenizer's own (auto), or raw text (none); run = as the first run of "
        "`u2a align` had it, else auto.",
        ("run", "auto", "none"),
    )
    max_length: int = option(
        0,
        "Longest prompt + response, in tokens, 2 or more; 0 = as the first run of `u2a align` had it, else "
        "512.",
        least=0,
    )
    score_tokens: int = option(2048, "Most tokens, padding included, in one forward pass.", least=1)
    dtype: str = option(
        "auto",
        "Number format; auto = float32: 16 bits round what an adapter adds to the weights.",
        ("auto", "float32", "bfloat16", "float16", "float64"),
    )
    device: str = option(
        "", "Device, e.g. cuda or cpu; empty = the accelerator (not Apple's mps: no float64), else the CPU."
    )
    trust_remote_code: bool = option(
        False, "Run code that comes with a model. Only if you trust it.", flag_only=True
    )


@dataclass(frozen=True)
class CompareOptions:
    """Comparison (the methods themselves stand in the YAML file): what is compared, at which budget."""

    pairs: str = option("", "Training pairs, for methods that see good answers: dpo, kto, sft.")
    mixture: str = option("", "Good answers that the original model was trained on; for retrain.")
    reward_model: str = option("", "Reward model, folder or Hub id: rloo.")
    steps: int = option(24, "Optimiser steps of every method.", least=1)
    batch_size: int = option(8, "Answers in each optimiser step; a pair has two.", least=1)
    seconds: float = option(
        0.0,
        "Wall-clock budget in seconds instead of steps, scoring and sampling included; 0 = use --steps.",
        least=0,
    )
    rates: str = option(
        "1e-4,2e-4,4e-4", "Learning rates to try, separated by commas; the best on validation J is picked."
    )
    seeds: int = option(3, "Seeds of every method, from --seed on.", least=1)
    looks: int = option(3, "How many times each method is measured while it trains.", least=1)
    nll_rise: float = option(
        0.02, "Margins are compared where the retain NLL has risen by this much, in nats per token.", above=0
    )
    max_nll_rise: float = option(
        0.1, "A learning rate that raises the retain NLL by more at its end is not picked."
    )
    max_repetition_rise: float = option(
        MOST_REPETITION_RISE,
        "Nor is one at whose end greedy answers to validation prompts repeat themselves by more than this, "
        "beyond noise: a share of 4-grams; 1 = never left out.",
        least=0,
        most=1,
    )
    metrics: str = option(
        ",".join(CORE_METRICS),
        f"Metrics of `u2a evaluate` at the end, by commas, of {', '.join(usable_metrics())}.",
    )
    answers: int = option(
        0,
        "Held-out prompts that are answered, for --metrics fluency; 0 = none (and not all, as in evaluate).",
        least=0,
    )
    max_new_tokens: int = option(64, "Longest answer, in tokens.", least=1)
    judged: str = option("", "The method that the verdict is about; empty = the first u2a.")
    cells: str = option(
        "", "Folder of finished runs that comparisons share; empty = cells/ in the run folder."
    )
    keep_models: bool = option(False, "Keep every final model in models/ of the run folder.")


@dataclass(frozen=True)
class DemoOptions:
    """Demo."""

    output: str = option("u2a-demo", "Run folder; must be empty or new.")
    seed: int = option(0, "Seed for all random choices.", least=0, most=LARGEST_SEED)


@dataclass(frozen=True)
class PlanOptions:
    """Plan: what would be run, and on what."""

    model_params: str = option("", "Parameters of the model, such as 8e9, 8B or 135M.", number=True)
    negatives: str = option("", "How many bad answers to score, such as 1e6 or 20K; no file.", number=True)
    tokens: float = option(300.0, "Tokens of a prompt with its answer, on average.", above=0)
    validation: float = option(256.0, "Validation pairs.", least=1)
    retain_rows: float = option(256.0, "Good texts to keep.", least=0)
    devices: float = option(1.0, "Accelerators at work.", above=0)
    flops: float = option(4e14, "Peak operations per second of each accelerator, in 16 bits.", above=0)
    utilisation: float = option(0.35, "Share of the peak that is reached.", above=0, most=1)
    device_memory: float = option(80e9, "Memory of each accelerator, in bytes.", above=0)
    price: float = option(
        0.0, "Price of one accelerator per hour, in your currency; 0 = no cost shown.", least=0
    )
    scoring: str = option("fd", "As in `u2a align`.", ("auto", "fd", "jvp", "exact"))
    select: str = option("50%", "Negatives that are unlearned: a percentage, or a number.")
    epochs: float = option(1.0, "Passes over them in each outer step.", above=0)
    outer_steps: int = option(2, "Rounds of scoring, weighting and unlearning.", least=1)
    measurements: int = option(4, "How often J, U and KL are measured in each.", least=1)
    retain_term: bool = option(False, "The loss also trains on the same number of retain tokens.")
    lora_rank: int = option(16, "Rank of the LoRA adapter; 0 = full fine-tuning.", least=0)
    quantize: str = option("none", "4bit: the frozen base is in 4 bits.", ("none", "4bit"))
    proxy_params: str = option(
        "0",
        "Parameters of a smaller model that computes the scores instead, such as 135M; 0 = none.",
        number=True,
    )
    bytes_per_param: float = option(2.0, "Bytes of a frozen parameter: 2 in 16 bits, 4 in 32.", above=0)
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass to save memory.")
    batch_tokens: float = option(4096.0, "Padded tokens of one batch on one device.", least=1)
    vocabulary: float = option(128_000.0, "Tokens of the vocabulary.", least=1)


@dataclass(frozen=True)
class ReviewOptions:
    """Review: what is served, and where the marks go."""

    negatives: str = option("", "Where the run's negatives are now; empty = where they were during the run.")
    output: str = option("", "Folder for reviewed.jsonl and review.json; empty = the run folder.")
    port: int = option(0, "Port on 127.0.0.1; 0 = one that is free.", least=0, most=65535)


@dataclass(frozen=True)
class ChatOptions:
    """Chat: how models answer, and where."""

    original: str = option("", "Original model; empty = what the first run folder of `u2a align` began with.")
    max_new_tokens: int = option(128, "Longest answer, in tokens.", least=1)
    temperature: float = option(0.0, "Sampling temperature; 0 = greedy.", least=0)
    seed: int = option(0, "Seed of every turn, the same for all models.", least=0, most=LARGEST_SEED)
    template: str = option(
        "run",
        "Chat template: the tokenizer's own (auto), or raw text (none); run = as the first run of "
        "`u2a align` had it, else auto.",
        ("run", "auto", "none"),
    )
    max_length: int = option(2048, "Most tokens of the conversation; the oldest are cut off.", least=2)
    dtype: str = option("auto", "Number format.", ("auto", "float32", "bfloat16", "float16", "float64"))
    device: str = option("", "Device, e.g. cuda:0 or cpu; empty = the best there is.")
    trust_remote_code: bool = option(
        False, "Run code that comes with a model. Only if you trust it.", flag_only=True
    )
    serve: bool = option(False, "Chat in the browser instead of the terminal; needs the extra `serve`.")
    port: int = option(0, "Port on 127.0.0.1 for --serve; 0 = one that is free.", least=0, most=65535)
