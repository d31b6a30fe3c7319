"""The run folder: configuration, versions, metrics, whole-file writes, and what each phase cost."""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from u2a.links import refuse_links_out
from u2a.plain_yaml import plain_values
from u2a.printable import printable
from u2a.storage import quiet_when_full, storage_errno
from u2a.types import UserError

log = logging.getLogger("u2a")

FOLDERS = ("adapter", "model", "checkpoints", "cells", "scores", "models")
"""Sub-folders of run folders."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    # not readable by more people than the umask allows: it may hold text of rows
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except Exception as error:
        number = storage_errno(error)
        if number is None:
            raise
        # the temporary file's name, or none, says nothing to people
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole; a float that is not finite is an error, not `NaN`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


class _OneLine(logging.Formatter):
    """A line a record: nobody's text can forge another one, or act on the terminal that shows the file."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, harmless."""
        return printable(super().format(record))


@dataclass
class PhaseCost:
    """Seconds (wall clock) and peak memory (bytes: device memory on an accelerator, else resident set)."""

    name: str
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass
class RunFolder:
    """One run's folder. Make it with `create` and use it as a context manager: everything in it is written
    whole or appended line by line."""

    path: Path
    phases: dict[str, PhaseCost] = field(default_factory=dict)
    fresh: bool = False
    log_file: logging.Handler | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes the log. A new run that ends in an error of the user's leaves nothing behind."""
        if self.log_file is not None:
            log.removeHandler(self.log_file)
            with suppress(OSError):  # a full disk, which whatever comes next says
                self.log_file.close()
        if self.fresh and kind is not None and issubclass(kind, UserError):
            for name in ("config.yaml", "versions.json", "run.log"):
                (self.path / name).unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                self.path.rmdir()

    @classmethod
    def check(cls, path: Path, *, resume: bool) -> None:
        """Refuses a folder that holds something already, without writing anything.

        Raises:
            UserError: the path is a file; or the folder is not empty and this is no `--resume`; or
                `--resume` finds no run, or one with a link that leads out of it.
        """
        if path.exists() and not path.is_dir():
            raise UserError(f"--output {path} is a file; name a folder")
        if resume and not (path / "config.yaml").is_file():
            raise UserError(
                f"--resume: {path} holds no run (no config.yaml); leave --resume out to begin one"
            )
        if not resume and path.is_dir() and any(path.iterdir()):
            raise UserError(f"--output {path} is not empty; name a new folder, or go on with --resume")
        if resume:  # what is appended must not land in another file
            refuse_links_out(path, below=FOLDERS)

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], *, resume: bool = False) -> RunFolder:
        """Makes the folder with `config.yaml`, `versions.json` and the log file `run.log`.

        Raises:
            UserError: as `check`; or the configuration differs from the one that is being resumed.
        """
        cls.check(path, resume=resume)
        kept = {key: value for key, value in config.items() if key not in ("resume", "output")}
        if resume:
            try:
                before = dict(plain_values((path / "config.yaml").read_text(encoding="utf-8")))
            except (OSError, TypeError, ValueError) as error:
                raise UserError(
                    f"--resume: {path / 'config.yaml'} is not readable ({error}); begin a new run"
                ) from None
            changed = sorted(key for key in kept if before.get(key) != kept[key])
            if changed:
                names = ", ".join(changed)
                raise UserError(f"--resume: {names} differ from {path / 'config.yaml'}; keep them")
        path.mkdir(parents=True, exist_ok=True)
        if not resume:
            write_text(path / "config.yaml", yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
        if not (path / "versions.json").is_file():  # on --resume too: the disk may have been full just then
            write_json(path / "versions.json", versions())
        handler = quiet_when_full(logging.FileHandler(path / "run.log", encoding="utf-8"))
        handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        return cls(path, fresh=not resume, log_file=handler)

    def record(self, event: str, **values: Any) -> None:
        """Appends one line to `metrics.jsonl`."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, allow_nan=False)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures seconds and peak memory of the block; phases of one name add up."""
        cost = self.phases.setdefault(name, PhaseCost(name))
        start = time.perf_counter()
        with _peak_memory() as peak:
            try:
                yield
            finally:
                cost.seconds += time.perf_counter() - start
        cost.peak_bytes = max(cost.peak_bytes, peak())


@contextmanager
def _peak_memory(interval: float = 0.05) -> Iterator[Callable[[], int]]:
    """Peak bytes in use within the block: exact on CUDA, sampled every `interval` seconds on the CPU."""
    import psutil
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield torch.cuda.max_memory_allocated
        return
    process, done, highest = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while True:
            highest[0] = max(highest[0], process.memory_info().rss)
            if done.wait(interval):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: highest[0]
    finally:
        done.set()
        watcher.join()


def versions() -> dict[str, Any]:
    """Versions of what shapes a result, the machine, and the commit of a checkout (no path, no user name)."""
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("u2a", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "safetensors"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(git, capture_output=True, text=True, timeout=5, check=False)
        found["git_commit"] = answer.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        found["git_commit"] = None
    return found
