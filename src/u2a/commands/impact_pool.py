"""`u2a impact --pool`: negatives that do not fit into memory, or on one machine, scored shard by shard.

∇J, ∇U and H⁻¹ times them are computed once. Then shards pass one after the other through the same scorer,
here or on a cluster. Each leaves a parquet file of scores in `impact/`; the best rows are gathered in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from u2a import interruption, processes
from u2a.commands.options import PoolOptions
from u2a.commands.proxies import SampledRows, is_proxy, load_scoring_policy, proxy_loss, said_of_proxy
from u2a.commands.schemas import IMPACT
from u2a.commands.session import (
    Data,
    Sizes,
    build_problem,
    load_data,
    minutes,
    output_path,
    say_warnings,
    seconds_per_token,
)
from u2a.commands.summary import measurement_rows, print_summary, write_summary
from u2a.commands.terminal import Bars, say
from u2a.cost_model import SCORING_PASSES
from u2a.runs.run_folder import RunFolder
from u2a.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from u2a.data.pool import Pool, Shard
    from u2a.impact.aims import Aimed
    from u2a.impact.best_rows import BestRows
    from u2a.impact.shard_scores import Parts, ShardScorer
    from u2a.passes.dataset import Progress as Advance
    from u2a.problem import Measurement, Problem

HEAD = 512
"""Rows of the pool that curvatures which are made of negatives are made of."""
FROM_NEGATIVES = ("adam", "hessian")
"""Those curvatures."""
TIMED = 8
"""Rows of the pool that the others see, to time a pass."""
NOT_HELD = ("engine", "workers")
"""Options that a run may be gone on with otherwise: they change where scores are made, not what they are."""


class Engine(Protocol):
    """Scores shards, several at once or not; they may come back in another order."""

    def score(self, shards: Iterator[Shard]) -> Iterator[tuple[Shard, pa.Table]]:
        """Each shard with its scores as a part holds them. Takes no more shards than it works on."""
        ...


@dataclass(frozen=True)
class Here:
    """This process, one shard after the other."""

    scorer: ShardScorer

    def score(self, shards: Iterator[Shard]) -> Iterator[tuple[Shard, pa.Table]]:
        """In the order of the shards."""
        from u2a.impact.shard_scores import part_of

        for shard in shards:
            yield shard, part_of(shard.rows, self.scorer(shard.rows))


def refuse_unused(values: Mapping[str, Any]) -> None:
    """Options of a pool without one, and `--engine here` with workers, would change nothing.

    Raises:
        UserError: names the option.
    """
    for field in fields(PoolOptions):
        given = values[field.name] != field.default
        if given and not values["pool"]:
            raise UserError(f"--{field.name.replace('_', '-')} means something only with --pool")
    if values["workers"] and values["engine"] == "here":
        raise UserError("--workers means something only with --engine ray")
    if values["pool"] and values["negatives"]:
        raise UserError("--pool stands in the place of --negatives: give one of the two")


def run_pool(values: Mapping[str, Any]) -> int:
    """Scores every row of the pool once, at the original model, and keeps the best."""
    from u2a.data.pool import Pool
    from u2a.models.policy import check_source

    if processes.launched():
        raise UserError("a launcher's processes do not share a pool: start one, with --engine ray")
    refuse_unused(values)
    folder = output_path(values)
    if values["output"]:
        RunFolder.check(folder, resume=values["resume"])
    if values["engine"] == "ray":
        from u2a.commands.ray_engine import check_ray

        check_ray()
    pool = Pool(values["pool"], shard_rows=values["shard_rows"])
    head = pool.head(HEAD if values["curvature"] in FROM_NEGATIVES else TIMED)
    data = load_data(values, IMPACT, head=head)
    if values["curvature"] in FROM_NEGATIVES:
        data.warnings.append(
            f"--curvature {values['curvature']} is made of the first {len(head)} rows of the pool only"
        )
    for model in filter(None, (values["model"], values["proxy_model"])):
        check_source(model, trust_remote_code=values["trust_remote_code"])
    held = {name: value for name, value in values.items() if name not in NOT_HELD}
    with RunFolder.create(folder, held, command="impact", resume=values["resume"]) as run, Bars() as bars:
        say_warnings(data.warnings)
        setting = _set(values, data, run, bars)
        with run.phase("scoring"):
            scored = _scored(values, pool, setting, data, run, bars)
        start, loss = setting.start, None
        del setting  # the proxy makes room for the whole model
        if scored.sample is not None and scored.sample.count:
            with run.phase("checking the proxy"):
                loss = proxy_loss(values, data, scored.sample, bars)
        _write_results(run, start, scored, data, said_of_proxy(values, loss))
    return 0


@dataclass(frozen=True)
class _Setting:
    """The model with J and U measured, and the directions that all rows are scored along."""

    problem: Problem
    start: Measurement
    aimed: Aimed


def _set(values: Mapping[str, Any], data: Data, run: RunFolder, bars: Bars) -> _Setting:
    from u2a.impact.aims import aim
    from u2a.impact.curvature import CURVATURES

    with run.phase("loading"):
        policy = load_scoring_policy(values)
    with run.phase("measuring"):
        problem = build_problem(values, IMPACT, data, policy, bars)
        sizes = Sizes.of(problem)
        row = sizes.negatives / len(data.negatives)
        method = "exact" if values["scoring"] == "auto" else values["scoring"]
        each = SCORING_PASSES[method] + (method != "exact")  # which has the log-probs besides
        seconds = each * row * seconds_per_token(problem)
        say(
            f"Scoring costs about {each:.1f} forward passes over the pool: by its first rows "
            f"{minutes(1e6 * seconds)} for a million in one process."
        )
        start = problem.measure(bars.task)
        aimed = aim(
            problem,
            start,
            curvature=CURVATURES[values["curvature"]](**IMPACT.chosen_options("curvature", values)),
            scoring=values["scoring"],
            task=bars.task,
        )
    return _Setting(problem, start, aimed)


def _scored(
    values: Mapping[str, Any], pool: Pool, setting: _Setting, data: Data, run: RunFolder, bars: Bars
) -> Scored:
    from u2a.data.validate import prompt_key
    from u2a.impact.best_rows import BestRows
    from u2a.impact.shard_scores import Parts, ShardScorer, mark_of

    problem, start = setting.problem, setting.start
    engine: Engine
    if values["engine"] == "ray":
        from u2a.commands.ray_engine import Job, RayEngine

        engine = RayEngine(Job.of(values, setting.aimed, problem))
    else:
        engine = Here(ShardScorer.of(problem, setting.aimed, values["self_check"]))
    of_negatives = values["curvature"] in FROM_NEGATIVES
    mark = mark_of(problem, setting.aimed, start.objective, start.utility, of_negatives=of_negatives)
    parts = Parts(run.path / "impact", mark)
    prompts = frozenset(prompt_key(prompt) for prompt in data.preferences["prompt"])
    with bars.task(f"scoring {pool.name}", None) as progress:
        sample = SampledRows(values["proxy_check"], values["seed"]) if is_proxy(values) else None
        scored = Scored(BestRows(values["keep"]), progress, sample)
        score_pool(pool.shards(prompts), engine, parts, scored)
    if scored.shared_prompts:
        data.warnings.append(
            f"{scored.shared_prompts} rows of the pool have a prompt that is also in the validation rows"
        )
        say_warnings(data.warnings[-1:])
    return scored


@dataclass
class Scored:
    """What is known of all the shards so far: the best rows, how many shards there were, how many rows share
    their prompt with a validation row, and the worst self-check of `fd`; `sample` gathers rows to check a
    proxy on."""

    best: BestRows
    progress: Advance | None = None
    sample: SampledRows | None = None
    shards: int = 0
    shared_prompts: int = 0
    self_check: dict[str, Any] | None = None

    def take(self, shard: Shard, scores: pa.Table) -> None:
        """Takes in one shard's scores."""
        self.best.add(shard.rows, scores)
        if self.sample is not None:
            self.sample.add(shard.rows, scores["impact"].to_numpy())
        self.shards += 1
        self.shared_prompts += shard.shared_prompts
        checked = json.loads((scores.schema.metadata or {}).get(b"self_check", b"null"))
        found = [check for check in (self.self_check, checked) if check is not None]
        self.self_check = max(found, key=lambda check: check["relative_error"], default=None)
        if self.progress:
            self.progress(len(shard.rows))


def score_pool(shards: Iterator[Shard], engine: Engine, parts: Parts, scored: Scored) -> None:
    """Has every shard scored whose scores are not in `parts` yet, and keeps them there; `scored` sees all.

    Raises:
        UserError: a row is broken. Interrupted: a signal asked for a stop. What is scored is kept.
    """

    def missing() -> Iterator[Shard]:
        for shard in shards:
            kept = parts.read(shard)
            if kept is None:
                yield shard
            else:
                scored.take(shard, kept)
                interruption.check()

    try:
        for shard, scores in engine.score(missing()):
            parts.write(shard, scores)
            scored.take(shard, scores)
            interruption.check()
    except UserError as error:
        if not scored.shards:
            raise
        raise UserError(
            f"{error}. {scored.shards} shards are scored and kept: mend the row, then go on with --resume"
        ) from error
    parts.drop_after(scored.shards)


def _write_results(
    run: RunFolder,
    start: Measurement,
    scored: Scored,
    data: Data,
    proxy: tuple[list[str], dict[str, Any]],
) -> None:
    from u2a.report.html import write_report

    best = scored.best
    best.write_table(run.path / "impact.parquet")
    selected = best.write_selected(run.path / "selected.jsonl")
    findings = [
        *proxy[0],
        f"`impact.parquet` and this report show the {len(best.best)} best rows of the pool only.",
    ]
    if not math.isnan(best.share_of_gain):
        findings.append(f"They hold {best.share_of_gain:.0%} of the predicted gain of all {best.rows} rows.")
    rows = measurement_rows(start, None)
    outcome = (
        f"{best.helpful} of {best.rows} rows of the pool are worth unlearning (positive impact); "
        f"{best.harmful} would harm alignment."
    )
    write_summary(
        run,
        "impact",
        outcome,
        rows,
        counts={
            "negatives": best.rows,
            "helpful": best.helpful,
            "harmful": best.harmful,
            "kept": len(best.best),
            "validation": len(data.preferences),
            "retain": len(data.retain) if data.retain else 0,
        },
        self_check=scored.self_check,
        findings=findings,
        warnings=data.warnings,
        **proxy[1],
    )
    write_report(run.path)
    for finding in findings:
        say(finding)
    print_summary(rows, run)
    say(outcome, essential=True)
    if selected:
        say(f"The best {selected}, for `u2a align --negatives`: {run.path / 'selected.jsonl'}")
    say(f"Run folder: {run.path}")
