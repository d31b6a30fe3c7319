"""`--engine ray`: a cluster on this machine scores what this process scores, and workers may die.

One cluster for all tests: it takes long to start. It ends with them.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from problems import BAD, GOOD, PAIRS, tiny_problem
from u2a import interruption, plugins
from u2a.cli import app_for
from u2a.commands import ray_cluster, ray_engine
from u2a.commands.impact_pool import Scored, score_pool
from u2a.commands.ray_engine import Actor, Job, RayEngine
from u2a.data.pool import Pool
from u2a.impact.aims import aim
from u2a.impact.best_rows import BestRows
from u2a.impact.shard_scores import PART_SCHEMA, Parts
from u2a.losses import LOSSES
from u2a.types import GuardStop, UserError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]
ROWS = [{"prompt": f"{p} {k}", "completion": f"{r} {'No. ' * k}"} for k in range(4) for p, r in BAD]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(
        address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=10**8
    )
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


class Stub:
    """Scores a row by its number; `job.folder` takes a note of every shard that was begun."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def load(self) -> None:
        pass

    def score(self, rows: Any) -> pa.Table:
        first = rows["row"][0]
        note = Path(self.job.folder) / f"{first}"
        before = note.read_text() if note.exists() else ""
        note.write_text(before + f"{os.getpid()}\n")
        if self.job.fault == "kill always" and first == 6:
            os._exit(1)
        if self.job.fault == "bad row" and first == 6:
            raise UserError("bad.jsonl, row 8: the `response` has no tokens")
        columns = {name: [None] * len(rows) for name in PART_SCHEMA.names}
        columns |= {"row": rows["row"][:], "id": rows["id"][:]}
        columns["impact"] = [float(-1) ** row * row for row in rows["row"]]
        return pa.table(columns, schema=PART_SCHEMA)


class DiesOnce(Actor):
    """The real thing, but that the process is gone in the midst of the third shard, once."""

    def score(self, rows: Any) -> pa.Table:
        note = Path(self.job.values["output"]) / "died"
        if rows["row"][0] == 10 and not note.exists():
            note.touch()
            os._exit(1)
        return super().score(rows)


def engine(folder: Path, fault: str = "", workers: int = 3) -> RayEngine:
    (folder / "begun").mkdir(exist_ok=True)
    values = {"workers": workers, "device": "cpu"}
    return RayEngine(
        SimpleNamespace(values=values, folder=str(folder / "begun"), fault=fault, loss=None), Stub
    )


def begun(folder: Path) -> dict[int, list[str]]:
    """Which process began each shard, by its first row."""
    return {int(path.name): path.read_text().split() for path in (folder / "begun").iterdir()}


def run(folder: Path, fault: str = "", workers: int = 3, shards: int = 8) -> BestRows:
    pool = Pool(jsonl(folder / "pool.jsonl", [{"text": str(i)} for i in range(3 * shards)]), shard_rows=3)
    scored = Scored(BestRows(4))
    score_pool(pool.shards(), engine(folder, fault, workers), Parts(folder / "impact", "mark"), scored)
    return scored.best


def impact(folder: Path, output: str, *more: str) -> Any:
    """`u2a impact` over a pool of five shards with a tiny model; `output` is the run's name."""
    model = folder / "model"
    given = {
        "--model": str(model if model.is_dir() else save_tiny(model, "qwen")),
        "--preferences": jsonl(
            folder / "pairs.jsonl", [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
        ),
        "--retain": jsonl(folder / "good.jsonl", [{"prompt": p, "completion": r} for p, r in GOOD]),
        "--lora-rank": "2",
        "--pool": jsonl(folder / "bad.jsonl", ROWS),
        "--shard-rows": "5",
        "--keep": "6",
        "--output": str(folder / output),
    }
    words = ["impact", *(word for pair in given.items() for word in pair), *more]
    return CliRunner().invoke(app_for(words), words)


def same_files(one: Path, other: Path) -> None:
    names = ["impact.parquet", "selected.jsonl", *(f"impact/part-{i:08d}.parquet" for i in range(5))]
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_model_scores_the_same_and_a_worker_that_dies_is_replaced(tmp_path, monkeypatch):
    """`u2a impact --engine ray` with the real scorer: two workers, one of them killed over a shard."""
    here = impact(tmp_path, "here")
    assert here.exit_code == 0, here.output
    monkeypatch.setattr(ray_engine, "RayEngine", lambda job: RayEngine(job, DiesOnce))
    done = impact(tmp_path, "ray", "--engine", "ray", "--workers", "2")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "ray" / "died").exists()
    assert "a worker died scoring shard 2 (rows 10 to 14)" in done.output
    same_files(tmp_path / "ray", tmp_path / "here")


OWN_LOSS = """
from dataclasses import dataclass
from threading import Lock
from typing import ClassVar

import own_sums
from u2a.config import option

LOCK = Lock()

@dataclass(frozen=True)
class Mine:
    needs_reference: ClassVar[bool] = False
    strength: float = option(2.0, "How strong.", above=0)

    def __call__(self, s, s_ref, length):
        return own_sums.soft(s / length) * self.strength

    def derivative(self, s, s_ref, length):
        return (s / length).sigmoid() * self.strength / length

class Locked(Mine):
    def derivative(self, s, s_ref, length):
        with LOCK:
            return super().derivative(s, s_ref, length)
"""


@pytest.fixture
def own_loss(tmp_path, monkeypatch):
    """A loss in two modules of the working folder, which no worker of the cluster has."""
    (tmp_path / "own_loss.py").write_text(OWN_LOSS)
    (tmp_path / "own_sums.py").write_text("from torch.nn.functional import softplus as soft\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_LOADED", {})
    losses = dict(LOSSES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    LOSSES.clear()
    LOSSES.update(losses)
    for name in ("own_loss", "own_sums"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("own_loss")
def test_a_loss_of_the_working_folder_goes_along(tmp_path):
    more = ("--loss", "own_loss:Mine", "--strength", "0.5")
    here = impact(tmp_path, "here", *more)
    assert here.exit_code == 0, here.output
    done = impact(tmp_path, "ray", *more, "--engine", "ray", "--workers", "2")
    assert done.exit_code == 0, done.output
    same_files(tmp_path / "ray", tmp_path / "here")


def test_a_model_s_folder_is_found_wherever_a_worker_is_and_missed_by_name(tmp_path, monkeypatch):
    save_tiny(tmp_path / "model", "qwen")
    monkeypatch.chdir(tmp_path)
    values = {"model": "model", "proxy_model": ""}
    problem = tiny_problem("llama")
    job = Job.of(values, aim(problem, problem.measure()), problem)
    assert job.values["model"] == str(tmp_path / "model")

    def gone(_values: Any) -> None:
        raise UserError("model: no such folder")

    monkeypatch.setattr("u2a.commands.proxies.load_scoring_policy", gone)
    with pytest.raises(UserError, match=f"^{socket.gethostname()}, a machine of the cluster: model: no such"):
        Actor(job).load()


@pytest.mark.usefixtures("own_loss")
def test_a_loss_that_cannot_be_sent_is_refused(tmp_path):
    done = impact(tmp_path, "ray", "--loss", "own_loss:Locked", "--engine", "ray", "--workers", "1")
    assert done.exit_code == 2, done.output
    assert "the code of the loss Locked cannot be sent to the cluster" in done.output


class Lacks(Stub):
    """A machine without one of the extras."""

    def load(self) -> None:
        raise ModuleNotFoundError("No module named 'bitsandbytes'")


@pytest.mark.usefixtures("own_loss")
@pytest.mark.parametrize("missing", ["own_loss", "bitsandbytes"])
def test_a_machine_that_lacks_code_is_no_worker_that_died(tmp_path, monkeypatch, missing):
    sys.path.append(str(tmp_path))
    made = engine(tmp_path, workers=1)
    if missing == "own_loss":
        made.job.loss = importlib.import_module("own_loss").Mine()
        monkeypatch.setattr("u2a.commands.cluster_code._own_modules", lambda _part: [])
    else:
        made.actor = Lacks
    pool = Pool(jsonl(tmp_path / "pool.jsonl", [{"text": "No."}]), shard_rows=3)
    with pytest.raises(UserError, match=f"lacks code that this one has .*No module named '{missing}'"):
        list(made.score(pool.shards()))


def test_a_cluster_that_is_not_there_is_refused_before_anything_is_run(tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        done = impact(tmp_path, "run", "--engine", "ray")
        assert done.exit_code == 2, done.output
        assert f"nobody answers at RAY_ADDRESS {address}" in done.output
        assert not (tmp_path / "run").exists()
        unused.listen()
        ray_cluster.check_address()


def test_a_cluster_that_cannot_be_joined_is_named(monkeypatch):
    import ray

    def refused(**_: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.7:6379")
    with pytest.raises(UserError, match=r"192\.0\.2\.7:6379: nobody there"), ray_cluster.cluster(2):
        pass


def test_shards_are_shared_out_and_each_is_scored_once(tmp_path):
    best = run(tmp_path, shards=20)
    assert [row["row"] for row in best.best] == [58, 56, 54, 52]
    found = begun(tmp_path)
    assert sorted(found) == list(range(0, 60, 3))
    assert all(len(processes) == 1 for processes in found.values())
    assert len({processes[0] for processes in found.values()}) > 1
    made = engine(tmp_path)
    assert list(made.score(iter(()))) == []  # no actor is hired for nothing
    results = made.score(Pool(str(tmp_path / "pool.jsonl"), shard_rows=3).shards())
    next(results)
    assert len(made.crew) == 3
    results.close()
    assert made.crew == []  # and none is left


def test_a_shard_that_ends_every_worker_stops_the_run_and_it_can_be_gone_on_with(tmp_path):
    with pytest.raises(
        GuardStop, match=r"3 workers died one after the other, scoring shard 2 \(rows 6 to 8\)"
    ):
        run(tmp_path, "kill always")
    kept = {path.name for path in (tmp_path / "impact").iterdir()}
    assert "part-00000002.parquet" not in kept
    before = begun(tmp_path)
    best = run(tmp_path)
    assert best.rows == 24
    for index in range(8):
        again = len(begun(tmp_path)[3 * index]) - len(before.get(3 * index, []))
        assert again == (f"part-{index:08d}.parquet" not in kept)


def test_a_worker_that_was_out_of_reach_does_not_keep_its_place(tmp_path):
    """It lives, but Ray could not speak to it: nobody would use or end it."""
    import ray

    made = engine(tmp_path, workers=1)
    (actor,) = made._hired(ray.put(made.job))
    ray.get(actor.load.remote())
    made._lost(actor, None, Counter(), ray.exceptions.ActorUnavailableError("no answer", None))
    assert made.crew == []

    def asked_again_and_again():  # it is told to end, and does so a little later
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            ray.get(actor.load.remote(), timeout=20)

    with pytest.raises(ray.exceptions.RayActorError):
        asked_again_and_again()


def test_a_bad_row_is_the_user_s_error(tmp_path):
    with pytest.raises(UserError, match=r"^bad\.jsonl, row 8: the `response` has no tokens"):
        run(tmp_path, "bad row", workers=1)


def test_a_signal_still_asks_for_a_stop_once_there_is_a_cluster(monkeypatch):
    """`ray.init` puts a handler of its own in the place of the command's."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with interruption.listening(quiet=True), ray_cluster.cluster(2):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(interruption.Interrupted):
            interruption.check()


def test_without_ray_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"pip install 'u2a\[ray\]'"):
        ray_engine.check_ray()
