"""Cheap proxies: scores of a smaller model or of a share of the layers, and what that loses, measured on a
few rows that the whole model scores as well.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from u2a.commands.options import ProxyOptions
from u2a.commands.schemas import IMPACT
from u2a.commands.session import Data, build_problem, load_model
from u2a.commands.terminal import Bars
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.models.policy import Policy

log = logging.getLogger("u2a")

FEWEST = 8
"""Fewer rows than this have no rank correlation worth a number."""


def refuse_bad_proxy(values: Mapping[str, Any]) -> None:
    """Raises `UserError` for a share of layers that is none, and for `--proxy-check` without a proxy."""
    share_of_layers(values)
    check = next(field for field in fields(ProxyOptions) if field.name == "proxy_check")
    if not is_proxy(values) and values["proxy_check"] != check.default:
        raise UserError("--proxy-check means something only with --proxy-model or --proxy-layers")


def share_of_layers(values: Mapping[str, Any]) -> float:
    """`25%` -> 0.25.

    Raises:
        UserError: it is no percentage above 0 and up to 100.
    """
    text = values["proxy_layers"]
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else math.nan
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UserError(f"--proxy-layers {text[:40]}: take a percentage above 0% and up to 100%, such as 25%")
    return share


def is_proxy(values: Mapping[str, Any]) -> bool:
    """Whether something cheaper than the whole model scores."""
    return bool(values["proxy_model"]) or share_of_layers(values) < 1


def load_scoring_policy(values: Mapping[str, Any]) -> Policy:
    """The policy that scores: the whole `--model`, or the proxy."""
    from u2a.impact.proxy_layers import keep_layers

    policy = load_model({**values, "model": values["proxy_model"] or values["model"]}, IMPACT)
    if (share := share_of_layers(values)) < 1:
        kept = keep_layers(policy, share, values["seed"])
        log.info("scores are taken along layers %s alone (--proxy-layers)", ", ".join(map(str, kept)))
    return policy


class SampledRows:
    """At most `count` rows of a stream, drawn by a seed, whatever order they come in, with their impacts."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._kept: list[tuple[int, float, dict[str, Any]]] = []

    def add(self, rows: Dataset, impact: np.ndarray) -> None:
        """Takes in canonical negatives and their impacts (N,): those with the smallest draws stay."""
        if not self.count:
            return
        draws = _drawn(np.asarray(rows["row"][:], dtype=np.uint64), self.seed)
        most = self._kept[-1][0] if len(self._kept) == self.count else np.iinfo(np.uint64).max
        places = np.flatnonzero(draws <= most)
        places = places[np.argsort(draws[places])][: self.count]
        new = [(int(draws[place]), float(impact[place]), rows[int(place)]) for place in places]
        self._kept = sorted([*self._kept, *new], key=lambda entry: entry[0])[: self.count]

    @property
    def impact(self) -> np.ndarray:
        """(n,) in the order of `rows`."""
        return np.array([impact for _, impact, _ in self._kept])

    def rows(self, features: Any) -> Dataset:
        """The rows as a data set, in the order of their draws."""
        from datasets import Dataset

        return Dataset.from_list([row for _, _, row in self._kept], features=features)


def _drawn(rows: np.ndarray, seed: int) -> np.ndarray:
    """A number for each row that says nothing about it (the finaliser of splitmix64; Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = (rows + np.uint64(seed) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Loss:
    """What a proxy loses, on `rows` rows: `spearman`, the rank correlation of its impacts with the whole
    model's, and `best_quarter`, the share of the whole model's best quarter of the rows that is in the
    proxy's (a quarter by chance)."""

    rows: int
    spearman: float
    best_quarter: float

    @classmethod
    def between(cls, proxy: np.ndarray, whole: np.ndarray) -> Loss:
        """Of impacts (n,) and (n,) of the same rows."""
        from scipy.stats import spearmanr

        quarter = max(1, len(whole) // 4)
        best = [set(np.argsort(-impact, kind="stable")[:quarter].tolist()) for impact in (proxy, whole)]
        return cls(len(whole), float(spearmanr(proxy, whole).statistic), len(best[0] & best[1]) / quarter)

    @property
    def sentence(self) -> str:
        """For people."""
        return (
            f"On {self.rows} rows that the whole model scored too, the rank correlation of the proxy's "
            f"impacts with its own is {self.spearman:.2f}, and {self.best_quarter:.0%} of its best quarter "
            "is in the proxy's (25% by chance)."
        )


def proxy_loss(values: Mapping[str, Any], data: Data, sample: SampledRows, bars: Bars) -> Loss | None:
    """Scores the sampled rows by the whole `--model`; None where they are too few."""
    from u2a.impact.curvature import CURVATURES
    from u2a.impact.table import score_impact

    count = len(sample.impact)
    if count < FEWEST:
        log.warning("%d rows are too few to say what the proxy loses: %d are needed", count, FEWEST)
        return None
    rows = sample.rows(data.negatives.features)
    policy = load_model(values, IMPACT)
    problem = build_problem(values, IMPACT, replace(data, negatives=rows), policy, bars)
    table = score_impact(
        problem,
        curvature=CURVATURES[values["curvature"]](**IMPACT.chosen_options("curvature", values)),
        scoring=values["scoring"],
        self_check=values["self_check"],
        task=bars.task,
    )
    return Loss.between(sample.impact, table.impact)


def said_of_proxy(values: Mapping[str, Any], loss: Loss | None) -> tuple[list[str], dict[str, Any]]:
    """Sentences for people, and what stands in `summary.json`; nothing where no proxy scored."""
    if not is_proxy(values):
        return [], {}
    what = [values["proxy_model"]] if values["proxy_model"] else []
    if share_of_layers(values) < 1:
        what.append(f"{values['proxy_layers']} of the layers")
    sentences = [f"All figures here are a proxy's ({', '.join(what)}), not the whole --model's."]
    if loss is None:
        return sentences, {"proxy": None}
    return [*sentences, loss.sentence], {"proxy": asdict(loss)}
