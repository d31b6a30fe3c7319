"""Shards of a pool scored by Ray actors, on the processes of this machine or of a cluster.

The rows are read here, once and in order, and the scores come back here: only this machine needs the pool and
the run folder; the others need u2a and the model. Actors come and go. One that dies, with its machine or not,
is replaced, and its shard goes to another; one that gets its place later joins in. There are never more
shards under way than actors, so memory here does not grow with the pool.
"""

from __future__ import annotations

import importlib.util
import logging
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2a import interruption
from u2a.commands.cluster_code import going_along, lacking_code
from u2a.commands.ray_cluster import check_address, cluster
from u2a.types import GuardStop, UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from torch import Tensor

    from u2a.data.pool import Shard
    from u2a.impact.aims import Aimed
    from u2a.impact.context import Direction
    from u2a.losses import UnlearningLoss
    from u2a.problem import Problem

log = logging.getLogger("u2a")

MOST_LOSSES = 3
"""Actors that may die over one shard, or one after the other before they are ready."""
LOOK = 10.0
"""Seconds between two looks at how much room the cluster has."""
_READY = -1


def check_ray() -> None:
    """Raises `UserError` where Ray is not installed, or nobody answers at the address of the cluster."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--engine ray needs Ray: pip install 'u2a[ray]'")
    check_address()


@dataclass(frozen=True)
class Job:
    """What an actor needs beside the rows: the command's options, the loss, the directions and, of an
    adapter, φ, on the CPU. Adapters are drawn otherwise on other devices, so φ goes along; whole models do
    not."""

    values: Mapping[str, Any]
    loss: UnlearningLoss
    aimed: Aimed
    phi: Direction | None

    @classmethod
    def of(cls, values: Mapping[str, Any], aimed: Aimed, problem: Problem) -> Job:
        """Of this process's model and loss."""
        from u2a.impact.shard_scores import without_gradients

        aimed = without_gradients(aimed)
        policy = problem.policy
        # a folder's name must not depend on where a worker happens to be
        models = {
            name: str(Path(values[name]).resolve())
            for name in ("model", "proxy_model")
            if values[name] and Path(values[name]).exists()
        }
        return cls(
            {**values, **models},
            problem.loss,
            replace(
                aimed,
                aims=replace(aimed.aims, of_j=_on_cpu(aimed.aims.of_j)),
                directions=[_on_cpu(direction) for direction in aimed.directions],
                solutions=(
                    replace(aimed.solutions[0], direction={}),
                    replace(aimed.solutions[1], direction={}),
                ),
            ),
            _on_cpu(policy.trainable()) if policy.has_adapter else None,
        )


def _on_cpu(tensors: Mapping[str, Tensor]) -> Direction:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


class Actor:
    """One process with the model. Made by Ray; nothing is loaded before `load`."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def load(self) -> None:
        """Loads the model and puts φ into it.

        Raises:
            UserError: the model is not there on this machine, or is another one.
        """
        import torch

        from u2a.commands.proxies import load_scoring_policy
        from u2a.data.render import Renderer
        from u2a.impact.shard_scores import ShardScorer
        from u2a.passes.positions import usable_length

        values = self.job.values
        try:
            policy = load_scoring_policy(values)
        except UserError as error:  # this machine is not the one that the user sees
            raise UserError(f"{socket.gethostname()}, a machine of the cluster: {error}") from None
        own = policy.trainable()
        with torch.no_grad():
            for name, value in (self.job.phi or {}).items():
                if name not in own or own[name].shape != value.shape:
                    raise UserError(
                        f"--model {values['model']}: the machines of the cluster have another one"
                    )
                own[name].copy_(value)
        self.scorer = ShardScorer(
            policy=policy,
            renderer=Renderer(
                policy.tokenizer, values["template"], usable_length(policy.model, values["max_length"])
            ),
            loss=self.job.loss,
            aimed=self.job.aimed,
            max_tokens=values["score_tokens"],
            self_check=values["self_check"],
        )

    def score(self, rows: Dataset) -> pa.Table:
        """One shard's scores, as a part holds them."""
        from u2a.impact.shard_scores import part_of

        return part_of(rows, self.scorer(rows))


@dataclass
class RayEngine:
    """Scores shards on `--workers` actors, or on as many as there is room for at any time.

    `actor` is the class of the actors. Shards come back in the order in which they are done.
    """

    job: Job
    actor: type = Actor
    crew: list[Any] = field(default_factory=list)
    """Handles of the actors that are thought to live."""

    def score(self, shards: Iterator[Shard]) -> Iterator[tuple[Shard, pa.Table]]:
        """Each shard with its scores.

        Raises:
            GuardStop: actors keep dying. UserError: a machine lacks code. UserError, GuardStop: what the
                scorer raises.
        """
        first = next(shards, None)
        if first is None:  # all are there: no need for a cluster
            return
        with cluster(self.job.values["workers"]):
            try:
                yield from self._scored(_with_first(first, shards))
            finally:
                self._dismiss()

    def _scored(self, shards: Iterator[Shard]) -> Iterator[tuple[Shard, pa.Table]]:
        import ray

        with going_along(self.job.loss):
            job = ray.put(self.job)
        looked, more = -LOOK, True
        tasks: dict[Any, tuple[Any, Shard | None]] = {}  # None = the actor is loading
        idle: list[Any] = []
        again: list[Shard] = []
        losses: Counter[int] = Counter()
        while more or again or any(shard for _, shard in tasks.values()):
            if time.monotonic() - looked >= LOOK:
                for actor in self._hired(job):
                    tasks[actor.load.remote()] = actor, None
                looked = time.monotonic()
            while idle and (more or again):
                shard = again.pop() if again else next(shards, None)
                if shard is None:
                    more = False
                    break
                actor = idle.pop()
                tasks[actor.score.remote(shard.rows)] = actor, shard
            interruption.check()
            done, _ = ray.wait(list(tasks), timeout=1.0)
            for task in done:
                actor, shard = tasks.pop(task)
                try:
                    found = ray.get(task)
                except ray.exceptions.RayTaskError as error:
                    cause = error.cause if isinstance(error.cause, Exception) else error
                    raise lacking_code(cause) or cause from error
                except ray.exceptions.RayError as error:
                    self._lost(actor, shard, losses, error)
                    looked = -LOOK  # hire another at once
                    if shard is not None:
                        again.append(shard)
                    continue
                idle.append(actor)
                losses[_READY if shard is None else shard.index] = 0
                if shard is not None:
                    yield shard, found

    def _hired(self, job: Any) -> list[Any]:
        """New actors, as many as are missing."""
        import ray

        room = ray.cluster_resources()
        gpus = int(room.get("GPU", 0)) if self.job.values["device"] != "cpu" else 0
        wanted = self.job.values["workers"] or max(1, gpus or int(room.get("CPU", 1)))
        remote: Any = ray.remote(self.actor).options(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=0)
        new = [remote.remote(job) for _ in range(wanted - len(self.crew))]
        self.crew += new
        return new

    def _lost(self, actor: Any, shard: Shard | None, losses: Counter[int], error: Exception) -> None:
        import ray

        if (lacking := lacking_code(error)) is not None:
            raise lacking from error
        ray.kill(actor)  # one that is merely out of reach would keep the place of the next
        place = _READY if shard is None else shard.index
        losses[place] += 1
        if actor in self.crew:
            self.crew.remove(actor)
        reason = str(error).strip().splitlines()[0][:200]
        what = "loading the model" if shard is None else f"scoring {_named(shard)}"
        if losses[place] >= MOST_LOSSES:
            raise GuardStop(
                f"{losses[place]} workers died one after the other, {what} ({reason}). Memory is the usual "
                "cause: fewer --workers, a smaller --score-tokens, or larger machines"
            )
        log.warning("a worker died %s; another takes its place (%s)", what, reason)

    def _dismiss(self) -> None:
        import ray

        for actor in self.crew:
            ray.kill(actor)
        self.crew.clear()


def _with_first(first: Shard, shards: Iterator[Shard]) -> Iterator[Shard]:
    yield first
    yield from shards


def _named(shard: Shard) -> str:
    rows = shard.rows["row"]
    return f"shard {shard.index} (rows {rows[0]} to {rows[-1]})"
