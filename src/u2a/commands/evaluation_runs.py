"""The runs of `u2a align` behind the models of `u2a evaluate` and `u2a chat`: what each began with, and how
it read its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from u2a.evaluation.readings import ORIGINAL
from u2a.storage.plain_yaml import plain_values
from u2a.types import UserError

MADE = ("adapter", "model", "merged")
"""What a run of `u2a align` leaves in its folder that can be loaded."""
USUAL: Mapping[str, Any] = {"template": "auto", "max_length": 512}
"""How rows are read where neither an option nor a run says it; the defaults of `u2a align`."""


@dataclass(frozen=True)
class AlignRun:
    """`name` is how the command line calls it, `config` what its config.yaml holds, `model` the folder of the
    adapter or model that is measured."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    model: Path

    def text(self, option: str) -> str:
        """An option that is text; empty where there is none."""
        value = self.config.get(option)
        return value if isinstance(value, str) else ""

    def place(self, name: str) -> Path:
        """Where a path of its config.yaml leads: paths are relative to where the run was made, which nothing
        says. So: this folder if the run lies within it, else the nearest folder around the run that has such
        a file."""
        path = Path(name).expanduser()
        around = self.folder.resolve().parents
        if path.is_absolute() or (Path.cwd() in around and path.exists()):
            return path
        return next((each / path for each in around if (each / path).exists()), path)

    @property
    def original(self) -> str:
        """The model it began with; empty where it does not say. An adapter knows the folder of its base for
        certain, wherever the command is given."""
        named = self.text("model")
        base = _base_of(self.model)
        found = Path(base).expanduser() if base else self.place(named)
        if not named or not found.exists() or found.resolve() == Path(named).expanduser().resolve():
            return named
        return str(found)


def run_of(model: str) -> AlignRun | None:
    """The run whose folder `model` names, or in whose folder it lies; None where there is none.

    Raises:
        UserError: its config.yaml cannot be read.
    """
    path = Path(model).expanduser()
    own = (path / "config.yaml").is_file() and not (path / "adapter_config.json").is_file()
    folder = path if own else path.parent
    if not (folder / "config.yaml").is_file() or not (own or path.name in MADE):
        return None
    made = [folder / "adapter", folder / "model"] if own else [path]
    kept = [each for each in made if _is_model(each)]
    try:
        config = dict(plain_values((folder / "config.yaml").read_text(encoding="utf-8")) or {})
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder / 'config.yaml'}: not what a run writes ({error}); name the model by --original"
        ) from None
    return AlignRun(model, folder, config, kept[-1] if kept else folder)


def runs_of(models: Sequence[str]) -> list[AlignRun]:
    """Those of the models that are of runs, in order; one whose config.yaml cannot be read is none."""
    found = []
    for model in models:
        try:
            run = run_of(model)
        except UserError:
            continue
        if run is not None:
            found.append(run)
    return found


def other_originals(models: Sequence[str], original: str) -> list[str]:
    """A warning for each run that began with another model than the one that all are compared with."""
    return [
        f"{run.name} began with {run.original}, and is compared with {original}: a change is not what that "
        "run did alone; compare it by itself, or with its own --original"
        for run in runs_of(models)
        if run.original and not _same(run.original, original)
    ]


def as_the_runs(
    values: Mapping[str, Any], models: Sequence[str], usual: Mapping[str, Any] = USUAL
) -> tuple[dict[str, Any], list[str]]:
    """The options of `usual` that were not given (`run`, or 0) as the first run had them, else as `usual` has
    them; and a warning for each that the runs differ in.

    Raises:
        UserError: --max-length 1.
    """
    if "max_length" in usual and values["max_length"] == 1:
        raise UserError("--max-length 1: must be at least 2, for a prompt and an answer")
    runs, found, warnings = runs_of(models), dict(values), []
    for option, default in usual.items():
        if values[option] not in ("run", 0):
            continue
        had = {run.name: run.config[option] for run in runs if _fits(run.config.get(option), default)}
        found[option] = next(iter(had.values()), default)
        if len(set(had.values())) > 1:
            flag = "--" + option.replace("_", "-")
            each = ", ".join(f"{name}: {value}" for name, value in had.items())
            warnings.append(
                f"the runs were made with different {flag} ({each}): all models are measured with "
                f"{found[option]}; {flag} takes another"
            )
    return found, warnings


def check_models(names: Mapping[str, str], *, trust_remote_code: bool) -> None:
    """A cheap look at every model.

    Raises:
        UserError: one is unusable; of the original it says how to name another.
    """
    from u2a.models.source import check_source

    for name, source in names.items():
        try:
            check_source(source, trust_remote_code=trust_remote_code)
        except UserError as error:
            if name != ORIGINAL:
                raise
            raise UserError(f"{error} (the original model, which --original names)") from error


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("adapter_config.json", "config.json"))


def _base_of(folder: Path) -> str:
    """The folder or file that an adapter names as its base, if it is there; else empty."""
    try:
        content = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = content.get("base_model_name_or_path")
        return base if isinstance(base, str) and Path(base).expanduser().exists() else ""
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def _same(one: str, other: str) -> bool:
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _fits(value: Any, default: Any) -> bool:
    """Whether a config.yaml, which anybody may have changed, has such a value."""
    if type(value) is not type(default):
        return False
    return value in ("auto", "none") if isinstance(value, str) else value >= 2
