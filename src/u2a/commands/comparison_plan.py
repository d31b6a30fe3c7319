"""What `u2a compare` is to do: methods, rates, seeds and rows, checked before any model is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2a.commands.comparison_metrics import metric_names
from u2a.commands.requirements import enough_retain_rows
from u2a.commands.schemas import COMPARE
from u2a.commands.session import Data, load_data
from u2a.data.digest import rows_digest
from u2a.losses import resolve_loss
from u2a.storage.files import file_digest
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.compare.plan import Entry
    from u2a.scorers import Scorer

STANDARD: tuple[Any, ...] = (
    "uniform",
    "random-k",
    "u2a",
    {"method": "u2a", "name": "u2a joint", "joint": 1.0},
    {"method": "dpo", "name": "dpo validation", "pairs": "validation"},
)
"""Compared where a configuration names no methods."""
WITH_PAIRS: tuple[Any, ...] = ("sft", "dpo", "kto")
"""And these, with training pairs."""


@dataclass(frozen=True)
class Plan:
    """What is to be done, checked before any model is loaded."""

    entries: list[Entry]
    rates: list[float]
    seeds: list[int]
    metrics: list[str]
    judged: Entry


@dataclass
class Extra:
    """Rows and models that some methods need."""

    training: Dataset | None = None
    mixture: Dataset | None = None
    scorer: Scorer | None = None


def make_plan(values: Mapping[str, Any]) -> Plan:
    """The entries, rates, seeds and metrics.

    Raises:
        UserError: one of them is unusable, or a method lacks what it needs.
    """
    from u2a.compare.plan import parse_methods

    methods = values["methods"]
    if methods is None:
        methods = [*STANDARD, *(WITH_PAIRS if values["pairs"] else ())]
    if not isinstance(methods, list) or not methods:
        raise UserError("methods: must be a list of names or of mappings with the key `method`")
    entries = parse_methods(methods, values["loss"])
    for entry in entries:
        _check_needs(entry, values)
    return Plan(
        entries,
        _rates(values["rates"]),
        [values["seed"] + k for k in range(values["seeds"])],
        metric_names(values["metrics"], values["answers"]),
        _judged(entries, values["judged"]),
    )


def _rates(text: str) -> list[float]:
    try:
        rates = sorted({float(part) for part in text.split(",")})
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise UserError(f"--rates {text}: give learning rates above 0, by commas, such as 1e-4,2e-4")
    return rates


def _judged(entries: Sequence[Entry], name: str) -> Entry:
    named = [e for e in entries if (e.name == name if name else e.kind == "u2a")]
    if name and not named:
        raise UserError(f"--judged {name}: no method has that name")
    return named[0] if named else entries[-1]


def _check_needs(entry: Entry, values: Mapping[str, Any]) -> None:
    flags = {"training": "pairs", "mixture": "mixture", "reward": "reward_model"}
    for need in entry.method.needs:
        if not values[flags[need]]:
            raise UserError(f"methods: {entry.name} needs --{flags[need].replace('_', '-')}")
    term = resolve_loss(entry.loss, None)[1] if entry.takes_loss else "none"
    if term in ("nll", "kl") and not values["retain"]:
        raise UserError(f"methods: {entry.name}: {entry.loss} needs --retain: good texts to train on")
    if term == "kl" and values["lora_rank"] == 0:
        raise UserError(
            f"methods: {entry.name}: {entry.loss} compares with the original model while it trains, which "
            "full fine-tuning does not keep; give --lora-rank above 0"
        )
    _check_objective(entry, values["objective"])
    if entry.kind == "retrain" and not entry.method.pretrained:
        raise UserError(
            f"methods: {entry.name} needs `pretrained`, the model that the original was made from"
        )
    if entry.kind == "kto" and values["batch_size"] < 2:
        raise UserError(f"methods: {entry.name} needs --batch-size 2 or more, for its KL term")
    if entry.kind in ("dpo", "kto", "d2o", "rloo"):
        if importlib.util.find_spec("trl") is None:
            raise UserError(f"methods: {entry.name} needs TRL: pip install 'u2a[baselines]'")
        if values["lora_rank"] == 0:
            raise UserError(f"methods: {entry.name} needs an adapter: give --lora-rank above 0")


def _check_objective(entry: Entry, objective: str) -> None:
    """Refuses methods that need what the validation rows of an objective do not have."""
    joint = getattr(entry.method, "joint", 0.0) > 0
    if objective == "reward" and (entry.kind == "climb" or joint):
        raise UserError(f"methods: {entry.name} climbs J on given texts; with --objective reward take rloo")
    if objective in ("reward", "nll"):
        if joint:
            raise UserError(f"methods: {entry.name}: `joint` climbs J on preference pairs; leave it out")
        if getattr(entry.method, "pairs", "") == "validation":
            raise UserError(
                f"methods: {entry.name}: with --objective {objective} the validation rows are no pairs; take "
                "`pairs: training` and --pairs"
            )


def check_models(values: Mapping[str, Any], plan: Plan) -> None:
    """A cheap look at the models that are named: nothing is loaded but, for rloo, a tokenizer from a folder.

    Raises:
        UserError: as `check_source`; or the tokenizer has no chat template, by which TRL renders prompts.
    """
    from u2a.models.loading import load_tokenizer
    from u2a.models.policy import check_source

    trust = values["trust_remote_code"]
    source = check_source(values["model"], trust_remote_code=trust)
    for entry in plan.entries:
        if entry.kind == "retrain":
            try:
                check_source(entry.method.pretrained)
            except UserError as error:
                raise UserError(f"methods: {entry.name}: `pretrained`: {error}") from None
        wanted = entry.kind == "rloo" and source.kind in ("folder", "adapter")
        if wanted and load_tokenizer(source, trust_remote_code=trust).chat_template is None:
            raise UserError(
                f"methods: {entry.name} needs a tokenizer with a chat template: TRL renders by it"
            )


def read_rows(values: Mapping[str, Any], plan: Plan) -> tuple[Data, Extra]:
    """All rows, checked.

    Raises:
        UserError: a file is missing or unusable.
    """
    from u2a.data.load import load_preferences, load_retain

    if not values["test"]:
        raise UserError("--test is missing: held-out pairs, on which methods are compared")
    data = load_data(values, COMPARE)
    for entry in plan.entries:
        if entry.takes_loss:
            enough_retain_rows({"loss": entry.loss, "retain": values["retain"]}, data.retain)
        if entry.kind == "rloo":
            _enough_prompts(entry, len(data.preferences), values["batch_size"])
    if data.retain is None:
        data.warnings += _cost_on_what_is_learnt(plan)
    needs = {need for entry in plan.entries for need in entry.method.needs}
    extra = Extra()
    if "training" in needs:
        extra.training = load_preferences(values["pairs"])
    if "mixture" in needs:
        extra.mixture = load_retain(values["mixture"])
    _check_extra(values, data, extra)
    return data, extra


def _enough_prompts(entry: Entry, prompts: int, batch_size: int) -> None:
    try:
        entry.method.check_prompts(prompts, batch_size)
    except UserError as error:
        raise UserError(f"methods: {entry.name}: {error}") from None


def _cost_on_what_is_learnt(plan: Plan) -> list[str]:
    """Without retain rows: who trains on the very answers that usefulness is then measured on."""
    names = [
        entry.name
        for entry in plan.entries
        if getattr(entry.method, "pairs", "") == "validation"
        or getattr(entry.method, "joint", 0.0) > 0
        or entry.kind == "climb"
    ]
    if not names:
        return []
    return [
        "without --retain usefulness is measured on the preferred validation answers, which "
        f"{', '.join(names)} train on: at equal cost their margins say nothing"
    ]


def load_reward_model(values: Mapping[str, Any], plan: Plan) -> Scorer | None:
    """The reward model, where a method needs one."""
    if not any("reward" in entry.method.needs for entry in plan.entries):
        return None
    from u2a.models.options import device_of
    from u2a.scorers import model_scorer

    return model_scorer(values["reward_model"], device_of(values["device"] or None))


def _check_extra(values: Mapping[str, Any], data: Data, extra: Extra) -> None:
    """Refuses rows that cannot be trained on; warns of training pairs that would teach the test."""
    from u2a.data.validate import check_data

    findings = check_data(
        preferences=extra.training,
        test=data.test,
        retain=extra.mixture,
        files={"preferences": values["pairs"], "test": values["test"], "retain": values["mixture"]},
        token_limit=None,
        count_tokens=None,
    )
    for finding in findings:
        if finding.fatal:
            raise UserError(f"{finding.file}, row {finding.row}: {finding.message}")
    if leaks := sum(finding.kind == "leak-test" for finding in findings):
        data.warnings.append(
            f"{leaks} of the --pairs have a prompt of --test: what is trained on them is judged by it"
        )


SHAPING = (
    *("steps", "batch_size", "seconds", "looks", "metrics", "answers", "max_new_tokens"),
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "dtype", "quantize"),
    *("objective", "curvature", "scoring", "template", "max_length"),
)
"""Options that shape every cell. The model is known by its mark, or by what it made of the rows: `start`."""


def _own_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the objective and of the curvature, by flag, where they are not the defaults: those of cells
    that were made before they were noted are."""
    found = {}
    for kind in ("objective", "curvature"):
        for option, value in COMPARE.chosen_options(kind, values).items():
            known = COMPARE.specs.get(f"{kind}_{option}")
            if known is None or value != known.default:
                found[f"{kind}_{option}"] = value
    return found


def settings_of(plan: Plan, values: Mapping[str, Any], data: Data, extra: Extra) -> dict[str, dict[str, Any]]:
    """What shapes the cells, by entry: its options, the comparison's, and a digest of the rows it may see."""
    shared = {**{name: values[name] for name in SHAPING}, **_own_options(values)}
    if values["objective"] == "reward":  # J is measured on responses that are drawn by it
        shared["seed"] = values["seed"]
    rows = {
        "negatives": data.negatives,
        "preferences": data.preferences,
        "test": data.test,
        "retain": data.retain,
        "training": extra.training,
        "mixture": extra.mixture,
    }
    digests = {role: rows_digest(each) for role, each in rows.items() if each is not None}
    found = {}
    for entry in plan.entries:
        unseen = {"training", "mixture"} - set(entry.method.needs)
        seen = {role: digest for role, digest in digests.items() if role not in unseen}
        found[entry.name] = {**shared, "rows": seen, **entry.settings}
        if entry.takes_loss:
            own = entry.loss == values["loss"]
            found[entry.name]["loss_options"] = COMPARE.chosen_options("loss", values) if own else {}
        if "reward" in entry.method.needs:
            found[entry.name]["reward_model"] = model_mark(values["reward_model"])
    return found


def model_mark(source: str) -> str:
    """A folder or file by its weights, so that it may stand elsewhere on another machine; a Hub id by its
    name. Those of a run folder are its adapter's."""
    place = Path(source).expanduser()
    found = [place] if place.is_file() else []
    weights = found or sorted([*place.glob("*.safetensors"), *place.glob("adapter/*.safetensors")])
    return " ".join(file_digest(file) for file in weights) or source
