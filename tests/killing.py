"""Kills `u2a` commands with SIGKILL at seeded random moments, resumes them, and compares what they leave.

`python killing.py FOLDER SEED KILLS [COMMAND…]` prints JSON. Everything heavy is imported once; every run is
a forked child. Most moments are counts of events in the child (a file operation in the run folder, a forward
pass, an optimiser step), so that each kind is hit however short it is; others are times by the clock. The
first kills of a command are one in each phase of a whole run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import pyarrow.parquet as pq
import torch
import transformers
from torch.optim.optimizer import register_optimizer_step_post_hook

from cases import jsonl, save_tiny

PAIRS = [
    {"prompt": f"Question {i}?", "chosen": f"Answer {i}, with care.", "rejected": "Go away, I will not."}
    for i in range(6)
]
BAD = [{"prompt": f"Bad {i}?", "completion": f"No {i}, go away. " * (i % 3 + 1)} for i in range(8)]
GOOD = [{"prompt": f"Good {i}?", "completion": f"Yes {i}."} for i in range(4)]
WARM = (
    *(
        "trainer",
        "alignment.outer_loop",
        "problem",
        "models.policy",
        "report.html",
        "report.model_card",
        "data.load",
    ),
    *("data.validate", "verification.estimators", "verification.controls"),
    *("compare.bench", "evaluation.subject"),
    *(f"commands.{name}" for name in ("impact", "align", "verify", "evaluate", "compare")),
)
PATIENCE = 120.0
"""Seconds after which a child is taken for stuck."""
ASIDE = ("run.log", "versions.json", "costs.json", "report.html", "checkpoints")
"""Files that tell when and where, and what is kept to go on from."""


KINDS = ("file", "forward", "step")
"""Of events."""


# -- in the child -------------------------------------------------------------------------------------------


@dataclass
class Trace:
    """Counts events, says the phase, and ends the process at event number `at` of the kinds `kinds`."""

    run: str
    told: int
    at: int | None
    kinds: tuple[str, ...]
    seen: dict[str, int] = field(default_factory=lambda: {"file": 0, "forward": 0, "step": 0})
    phase: str = "setting up"

    def tell(self, **what: Any) -> None:
        os.write(self.told, (json.dumps(what) + "\n").encode())

    def event(self, kind: str) -> None:
        self.seen[kind] += 1
        if self.at is not None and sum(self.seen[k] for k in self.kinds) == self.at:
            self.tell(phase=self.phase, kind=kind)
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, name: str, args: tuple[Any, ...]) -> None:
        if name not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            return
        writes = name != "open" or (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and self.run in os.fsdecode(args[0] if not isinstance(args[0], int) else b""):
            self.event("file")

    def install(self) -> None:
        from u2a.runs.run_folder import RunFolder

        sys.addaudithook(self.audit)
        forward = transformers.LlamaForCausalLM.forward

        def counted(*args: Any, **options: Any) -> Any:
            self.event("forward")
            return forward(*args, **options)

        transformers.LlamaForCausalLM.forward = counted  # type: ignore[method-assign]
        register_optimizer_step_post_hook(lambda *_: self.event("step"))
        phase = RunFolder.phase

        @contextlib.contextmanager
        def named(folder: RunFolder, name: str) -> Iterator[None]:
            self.phase = name.split()[0]
            self.tell(phase=self.phase, begins=sum(self.seen.values()))
            with phase(folder, name):
                yield
            self.phase = "after " + self.phase
            self.tell(phase=self.phase, begins=sum(self.seen.values()))

        RunFolder.phase = named  # type: ignore[method-assign]


def child(words: list[str], log: Path, trace: Trace) -> int:
    """Runs a command; never returns."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    status = 70
    try:
        trace.install()
        from u2a.cli import app

        app(words)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
            trace.tell(count=trace.seen)
        os._exit(status)


# -- in the parent ------------------------------------------------------------------------------------------


@dataclass
class Ended:
    status: int | None
    """None = killed."""
    phase: str
    kind: str
    count: dict[str, int]
    seconds: float
    begins: list[tuple[str, int]]
    """Each phase, and how many events were before it."""


def start(
    words: list[str],
    run: Path,
    *,
    at: int | None = None,
    kinds: tuple[str, ...] = (),
    after: float | None = None,
) -> Ended:
    """One run in a child, killed at an event or after so many seconds, if it lives so long."""
    reading, told = os.pipe()
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        child(words, run.with_suffix(".log"), Trace(str(run), told, at, kinds))
    os.close(told)
    stuck = False
    while True:
        ended, raw = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        passed = time.monotonic() - begin
        if passed > PATIENCE or (after is not None and passed > after):
            stuck = passed > PATIENCE
            os.kill(pid, signal.SIGKILL)
            _, raw = os.waitpid(pid, 0)
            break
        time.sleep(0.002)
    with os.fdopen(reading) as pipe:
        said = [json.loads(line) for line in pipe]
    last: dict[str, Any] = {"phase": "setting up", "kind": "clock", "count": {}}
    for each in said:
        last |= each
    killed = os.WIFSIGNALED(raw) and os.WTERMSIG(raw) == signal.SIGKILL and not stuck
    status = None if killed else -1 if stuck else os.waitstatus_to_exitcode(raw)
    begins = [("setting up", 0), *((each["phase"], each["begins"]) for each in said if "begins" in each)]
    return Ended(status, last["phase"], last["kind"], last["count"], time.monotonic() - begin, begins)


def content(run: Path) -> dict[str, Any]:
    """What a run leaves, without times: JSON and tables by value, everything else, and tables of impacts, by
    its bytes."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or path.name.endswith(".lock") or name.split("/")[0] in ASIDE:
            continue
        if path.suffix == ".json":
            found[name] = json.dumps(timeless(json.loads(path.read_text())))
        elif path.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".parquet" and name.split("/")[0] not in ("impact", "impact.parquet"):
            found[name] = repr(timeless(pq.read_table(path).to_pylist()))
        elif path.name == "README.md":  # with a table of costs
            lines = path.read_text().splitlines()
            found[name] = [line for line in lines if not line.endswith(("MiB |", "GiB |", "– |", "iB."))]
        else:
            found[name] = path.read_bytes()
    return found


def timeless(value: Any) -> Any:
    """Without what the clock or the memory decides."""
    if isinstance(value, dict):
        clocks = ("seconds", "whole_seconds", "phases", "time")
        kept = {key: timeless(each) for key, each in value.items() if key not in clocks}
        if "curve" in kept:  # of (rise, margin, seconds)
            kept["curve"] = [point[:2] for point in kept["curve"]]
        return kept
    return [timeless(each) for each in value] if isinstance(value, list) else value


def commands(folder: Path) -> dict[str, list[str]]:
    """The words of each command but --output."""
    model, other = (str(save_tiny(folder / f"model-{seed}", "llama", seed=seed)) for seed in (0, 1))
    rows = {
        "negatives": jsonl(folder / "bad.jsonl", BAD),
        "test": jsonl(folder / "test.jsonl", PAIRS[3:]),
        "retain": jsonl(folder / "good.jsonl", GOOD),
    }
    pairs = jsonl(folder / "pairs.jsonl", PAIRS[:3])
    methods = folder / "compare.yaml"
    methods.write_text("methods: [uniform, {method: u2a, select: 100%}]\n")
    data = [word for name, path in rows.items() for word in (f"--{name}", path)]
    tuned = ["--model", model, *data, "--preferences", pairs, "--lora-rank", "2", "--learning-rate", "1e-2"]
    compared = [word for word in tuned if word not in ("--learning-rate", "1e-2")]
    scored = [*tuned[:4], *tuned[6:10]]
    (folder / "short_is_good.py").write_text(
        "def score(prompts, answers):\n    return [-0.1 * len(answer) for answer in answers]\n"
    )
    sys.path.insert(0, str(folder))
    return {
        "impact": ["impact", *scored, "--lora-rank", "2", "--curvature", "identity"],
        "align": ["align", *tuned, "--max-steps", "4", "--batch-size", "2", "--outer-steps", "2",
                  "--measurements", "2", "--min-gain", "-10", "--lora-dropout", "0.1",
                  "--select", "100%", "--merge"],
        "align, reward": ["align", *tuned, "--objective", "reward", "--max-steps", "2", "--batch-size", "2",
                          "--objective-reward-function", "short_is_good:score", "--objective-samples", "2",
                          "--objective-max-new-tokens", "4", "--outer-steps", "2", "--measurements", "1",
                          "--min-gain", "-10"],
        "verify": ["verify", *tuned, "--max-steps", "2", "--subsets", "4", "--repeats", "0",
                   "--embedding-model", ""],
        "evaluate": ["evaluate", model, other, "--original", model, *data, "--max-new-tokens", "4"],
        "compare": ["compare", "--config", str(methods), *compared, "--steps", "2", "--batch-size", "2",
                    "--looks", "1", "--seeds", "1", "--rates", "1e-2", "--curvature", "identity",
                    "--keep-models"],
        "impact, pool": ["impact", *scored[:2], "--pool", *scored[3:], "--lora-rank", "2",
                         "--shard-rows", "2", "--keep", "4"],
    }  # fmt: skip


@dataclass
class Trial:
    """Kills a command until it has been killed often enough; every chain of kills ends in a whole run."""

    name: str
    words: list[str]
    folder: Path
    random: random.Random
    kills: list[dict[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    due: list[str] = field(default_factory=list)
    phases: dict[str, list[int]] = field(default_factory=dict)
    """Each phase of a whole run -> its events; the first kills are one in each."""

    def run(self, wanted: int) -> None:
        reference = self.folder / f"{self.name}-whole"
        whole = start([*self.words, "--output", str(reference)], reference)
        if whole.status not in (0, 1):
            self.wrong.append(f"{self.name}: {self._said(reference)}")
            return
        expected = content(reference)
        ends = [*(begin for _, begin in whole.begins[1:]), sum(whole.count.values())]
        for (phase, begin), end in zip(whole.begins, ends, strict=True):
            self.phases.setdefault(phase, []).extend(range(begin + 1, end + 1))
        self.phases = {phase: events for phase, events in self.phases.items() if events}
        self.due = list(self.phases)
        chain = 0
        while (len(self.kills) < wanted or self.due) and not self.wrong:
            run = self.folder / f"{self.name}-{chain}"
            self._chain(run, whole, wanted)
            found = content(run) if not self.wrong else expected
            names = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
            if names:
                self.wrong.append(f"{self.name}, chain {chain}: {', '.join(names)} differ")
            chain += 1

    def _chain(self, run: Path, whole: Ended, wanted: int) -> None:
        while True:
            words = [*self.words, "--output", str(run)]
            begun = (run / "config.yaml").is_file()
            if begun or (run.is_dir() and self.random.random() < 0.5):
                words.append("--resume")
            if not begun and not run.is_dir() and self.due:
                moment = {"at": self.random.choice(self.phases[self.due.pop(0)]), "kinds": KINDS}
            else:
                more = len(self.kills) + len(self.due) < wanted
                moment = self._moment(whole, 0.5 if begun else 1.0) if more else {}
            ended = start(words, run, **moment)
            if ended.status is None:
                self.kills.append({"command": self.name, "phase": ended.phase, "kind": ended.kind})
                continue
            if ended.status not in (0, 1):
                self.wrong.append(f"{self.name}, {run.name}: status {ended.status}: {self._said(run)}")
            return

    def _moment(self, whole: Ended, share: float) -> dict[str, Any]:
        """Within that share of a whole run, of any phase. Of four kills, two at a file operation, one at any
        event, one by the clock."""
        draw = self.random.random()
        if draw < 0.25:
            return {"after": self.random.uniform(0.0, share * whole.seconds)}
        kinds = ("file",) if draw < 0.75 else KINDS
        events = round(share * sum(whole.count[kind] for kind in kinds))
        return {"at": self.random.randint(1, max(1, events)), "kinds": kinds}

    def _said(self, run: Path) -> str:
        log = run.with_suffix(".log")
        return log.read_text()[-2000:] if log.is_file() else "nothing"


def main(folder: Path, seed: int, kills: int, only: list[str]) -> None:
    """Tries every command, or `only` some, and prints what happened."""
    torch.set_num_threads(1)
    for name in WARM:
        importlib.import_module(f"u2a.{name}")
    from u2a.alignment import measuring
    from u2a.impact import blocks

    blocks.BLOCK, measuring.EVERY = 3, 0.0  # else a tiny run has one block, and keeps next to nothing
    found: dict[str, Any] = {"kills": [], "wrong": [], "seconds": {}, "phases": []}
    for number, (name, words) in enumerate(commands(folder).items()):
        if only and name not in only:
            continue
        begin = time.monotonic()
        trial = Trial(name, words, folder, random.Random(f"{seed} {number}"))
        trial.run(kills)
        found["kills"] += trial.kills
        found["wrong"] += trial.wrong
        found["phases"] += [f"{name}: {phase}" for phase in trial.phases]
        found["seconds"][name] = round(time.monotonic() - begin, 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
