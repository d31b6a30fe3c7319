"""The run folder: configuration, versions, metrics, whole-file writes, and what each phase cost."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from u2a import interruption, processes
from u2a.printable import printable
from u2a.runs.phase_cost import PhaseCost, peak_memory
from u2a.runs.run_lock import NAME as LOCK
from u2a.runs.run_lock import RunLock
from u2a.runs.versions import versions
from u2a.storage.disk_faults import quiet_when_full
from u2a.storage.files import cut_half_line, is_leftover, sweep, write_json, write_text
from u2a.storage.files import whole_file as whole_file
from u2a.storage.files import whole_folder as whole_folder
from u2a.storage.links import refuse_links_out
from u2a.storage.plain_yaml import plain_values
from u2a.types import UserError

log = logging.getLogger("u2a")

FOLDERS = ("adapter", "model", "checkpoints", "cells", "scores", "models", "impact")
"""Sub-folders of run folders."""


class _OneLine(logging.Formatter):
    """A line a record: nobody's text can forge another one, or act on the terminal that shows the file."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, harmless."""
        return printable(super().format(record))


COSTS = "costs.json"
"""Seconds and peaks of the phases so far, for a run that is resumed."""
_OPENING = ("versions.json", "run.log", COSTS, "config.yaml")
"""What a run writes before it does anything."""


@dataclass
class RunFolder:
    """One run's folder. Make it with `create` and use it as a context manager: everything in it is written
    whole or appended line by line. `lock` keeps other runs out. Of several processes that do one run, the
    first alone `writes`."""

    path: Path
    phases: dict[str, PhaseCost] = field(default_factory=dict)
    fresh: bool = False
    log_file: logging.Handler | None = None
    lock: RunLock | None = None
    writes: bool = True
    _running: dict[str, Callable[[], PhaseCost]] = field(default_factory=dict)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes the log and gives the folder free. A new run that ends in an error of the user's leaves
        nothing behind."""
        if self.log_file is not None:
            log.removeHandler(self.log_file)
            with suppress(OSError):  # a full disk, which whatever comes next says
                self.log_file.close()
        if self.fresh and kind is not None and issubclass(kind, UserError) and self._nothing_done():
            # the configuration last: with it the folder can be resumed
            for name in _OPENING:
                (self.path / name).unlink(missing_ok=True)
            if _holds_nothing(self.path):
                (self.path / LOCK).unlink(missing_ok=True)
                with suppress(OSError):
                    self.path.rmdir()
        if self.lock is not None:
            self.lock.release()

    def _nothing_done(self) -> bool:
        """Whether the run has left nothing but what every run begins with, and nobody else is in it."""
        if self.lock is not None and self.lock.shared and not self.lock.alone():
            return False
        return all(
            path.name in (*_OPENING, LOCK) or is_leftover(path) or (path.is_dir() and not any(path.iterdir()))
            for path in self.path.iterdir()
        )

    @classmethod
    def check(cls, path: Path, *, resume: bool) -> None:
        """Refuses a folder that holds something already, without writing anything. What a run leaves that was
        killed before it had written its configuration is nothing.

        Raises:
            UserError: the path is a file; or the folder is not empty and this is no `--resume`; or
                `--resume` finds no run, or one with a link that leads out of it.
        """
        if path.exists() and not path.is_dir():
            raise UserError(f"--output {path} is a file; name a folder")
        empty = path.is_dir() and _holds_nothing(path)
        if resume and not empty and not (path / "config.yaml").is_file():
            raise UserError(
                f"--resume: {path} holds no run (no config.yaml); leave --resume out to begin one"
            )
        if not resume and path.is_dir() and not empty:
            raise UserError(f"--output {path} is not empty; name a new folder, or go on with --resume")
        if resume:  # what is appended must not land in another file
            refuse_links_out(path, below=FOLDERS)

    @classmethod
    def create(
        cls,
        path: Path,
        config: Mapping[str, Any],
        *,
        command: str = "",
        resume: bool = False,
        shared: bool = False,
    ) -> RunFolder:
        """Makes the folder with `config.yaml`, `versions.json` and the log file `run.log`.

        Of several processes that do one run, the first makes it.

        Args:
            command: what makes the run; another one does not go on with it.
            shared: processes with the same configuration may work in it at once.

        Raises:
            UserError: as `check`; or another run is at work there; or the configuration differs from the one
                that is being resumed.
        """
        with processes.as_one():
            if processes.is_main():
                return cls._create(path, config, command, resume, shared)
        return cls(path, writes=False)

    @classmethod
    def _create(
        cls, path: Path, config: Mapping[str, Any], command: str, resume: bool, shared: bool
    ) -> RunFolder:
        cls.check(path, resume=resume)
        path.mkdir(parents=True, exist_ok=True)
        lock = RunLock.take(path, shared=shared and resume)
        try:
            cls.check(path, resume=resume)  # again, now that nobody else writes
            begins = not (path / "config.yaml").is_file()
            kept = {key: value for key, value in config.items() if key not in ("resume", "output")}
            if not begins:
                _refuse_changes(path, kept, command)
            if lock is not None and (not lock.shared or lock.alone()):
                sweep(path)
                cut_half_line(path / "metrics.jsonl")
            if begins:
                write_text(path / "config.yaml", yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
            if not (path / "versions.json").is_file():
                write_json(path / "versions.json", {"command": command, **versions()})
            if shared and lock is not None:
                lock.share()
        except BaseException:
            if lock is not None:
                if not lock.shared and _holds_nothing(path):
                    with suppress(OSError):
                        (path / LOCK).unlink(missing_ok=True)
                lock.release()
            raise
        handler = quiet_when_full(logging.FileHandler(path / "run.log", encoding="utf-8"))
        handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        return cls(path, _costs_so_far(path), fresh=begins, log_file=handler, lock=lock)

    def record(self, event: str, **values: Any) -> None:
        """Appends one line to `metrics.jsonl`."""
        if not self.writes:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, allow_nan=False)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
        self.keep_costs()

    def keep_costs(self) -> None:
        """Writes what the phases have cost so far. In a folder that is shared, nobody's would be right."""
        if self.lock is None or self.lock.shared:
            return
        now = {**self.phases, **{name: cost() for name, cost in self._running.items()}}
        write_json(self.path / COSTS, [asdict(cost) for cost in now.values()])

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures seconds and peak memory of the block; phases of one name add up.

        Raises:
            Interrupted: a signal has asked for a stop before it began.
        """
        interruption.check()
        cost = self.phases.setdefault(name, PhaseCost(name))
        start = time.perf_counter()
        with peak_memory() as peak:

            def so_far() -> PhaseCost:
                seconds = cost.seconds + time.perf_counter() - start
                return PhaseCost(name, seconds, max(cost.peak_bytes, peak()))

            self._running[name] = so_far
            try:
                yield
            finally:
                del self._running[name]
                done = so_far()
                cost.seconds, cost.peak_bytes = done.seconds, done.peak_bytes
                self.keep_costs()


def _holds_nothing(folder: Path) -> bool:
    """Nothing but a lock and what was never finished."""
    return all(path.name == LOCK or is_leftover(path) for path in folder.iterdir())


def _refuse_changes(path: Path, kept: Mapping[str, Any], command: str) -> None:
    try:  # a kill may have come before it was written
        began = json.loads((path / "versions.json").read_text(encoding="utf-8")).get("command", "")
    except (OSError, ValueError, AttributeError):
        began = ""
    if began and command and began != command:
        raise UserError(f"--resume: {path} is a run of `u2a {began}`; name another --output")
    try:
        before = dict(plain_values((path / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(
            f"--resume: {path / 'config.yaml'} is not readable ({error}); begin a new run"
        ) from None
    changed = sorted(key for key in kept if key not in before or before[key] != kept[key])
    if changed:
        raise UserError(
            f"--resume: {', '.join(changed)} differ from {path / 'config.yaml'}; keep them, or begin a new "
            "run"
        )


def _costs_so_far(path: Path) -> dict[str, PhaseCost]:
    """Of the run that is resumed; costs are no result, so a file that is not readable is left aside."""
    try:
        costs = [PhaseCost(**cost) for cost in json.loads((path / COSTS).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return {}
    return {cost.name: cost for cost in costs}
