"""Harness: what the model can do, by the tasks of the LM Evaluation Harness."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from u2a.config import option
from u2a.evaluation.figure import Figure
from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Subject


@dataclass(frozen=True)
class Harness:
    """By EleutherAI's LM Evaluation Harness (Gao et al. 2024, https://zenodo.org/records/12608602):
    `harness_<task>_<metric>` for each task and metric, ↑ or ↓ as the task says, in the task's own unit; a
    group or tag gives those of its tasks. Prompts, shots and seeds are the harness's defaults, so no chat
    template. A figure that is no mean over examples, such as BLEU, has no interval."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = ()
    asks: ClassVar[tuple[str, ...]] = ("harness_tasks",)

    harness_tasks: str = option(
        "", "harness: tasks, groups or tags of lm-eval by commas (extra `harness`); empty = leave it out."
    )
    harness_include: str = option(
        "",
        "harness: folder with more tasks, as lm-eval's YAML files; they can run code.",
        flag_only=True,
    )
    harness_limit: int = option(0, "harness: most examples of each task, the first ones; 0 = all.", least=0)

    @cached_property
    def tasks(self) -> dict[str, Any]:
        """The harness's tasks by name, with their data.

        Raises:
            UserError: lm-eval is not installed, there is no such folder or task, or one does not load or
                cannot be run here.
        """
        names = [name.strip() for name in self.harness_tasks.split(",") if name.strip()]
        index = _index(self.harness_include)
        for name in names:
            if name not in index.all_tasks:
                near = difflib.get_close_matches(name, index.all_tasks, n=3)
                raise UserError(
                    f"--harness-tasks {name}: lm-eval has no such task"
                    + (f"; did you mean {', '.join(near)}?" if near else "; `lm-eval ls tasks` lists them")
                )
        with _quiet():
            try:
                found = index.load(names)["tasks"] if names else {}
            except Exception as error:  # of the harness, of datasets, or of a task's own code
                raise UserError(f"--harness-tasks {', '.join(names)}: {_first_line(error)}") from error
        if not found:
            raise UserError(f"--harness-tasks {self.harness_tasks}: there is no task in that")
        for name, task in found.items():
            for kind, what in _NOT_HERE.items():
                if getattr(task, kind, False):
                    raise UserError(f"--harness-tasks {name}: it {what}, which u2a does not do")
        return found

    def check(self) -> None:
        """Loads the tasks, so that what is missing is found before any model is loaded.

        Raises:
            UserError: one of them is not there or does not load.
        """
        self.tasks  # noqa: B018 - for its errors

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """One figure a task and metric, a value an example where it is their mean."""
        del material
        if not self.harness_tasks:
            return []
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        from u2a.models.policy import that_pads

        tasks = list(self.tasks.values())
        with _quiet():
            model = HFLM(
                pretrained=subject.policy.model,
                tokenizer=that_pads(subject.policy.tokenizer),
                batch_size=subject.sampling.batch_size,
            )
            results: Any = simple_evaluate(
                model=model,
                tasks=tasks,
                task_manager=_index(self.harness_include),
                limit=self.harness_limit or None,
                bootstrap_iters=0,
            )
        return [figure for name in results["samples"] for figure in task_figures(name, results)]


def task_figures(task: str, results: Mapping[str, Any]) -> list[Figure]:
    """The figures of one task from what `simple_evaluate` returns.

    `results[task]` has a number for each `metric,filter`; a filter other than `none` ends the figure's name.
    """
    found = []
    for key, value in results["results"][task].items():
        metric, comma, way = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        name = f"harness_{task}_{metric}" + ("" if way == "none" else f"_{way}")
        better = _DIRECTIONS[results["higher_is_better"][task].get(metric)]
        unit = "share" if metric.startswith(("acc", "exact_match")) else "the task's own"
        samples = sorted((s for s in results["samples"][task] if s["filter"] == way), key=_place)
        found.append(_figure(name, [s.get(metric) for s in samples], float(value), better, unit))
    return found


_NOT_HERE = {"UNSAFE_CODE": "runs code that models write", "MULTIMODAL": "shows more than text"}
_DIRECTIONS = {True: "higher", False: "lower", None: "neither"}


def _place(sample: Mapping[str, Any]) -> int:
    return int(sample["doc_id"])


def _figure(name: str, values: Sequence[Any], value: float, better: str, unit: str) -> Figure:
    """Of the examples' values where the figure is their mean, else of the figure alone."""
    if all(isinstance(each, Real) for each in values):
        numbers = np.array(values, np.float64)
        if math.isclose(numbers.mean(), value, rel_tol=1e-9, abs_tol=1e-12):
            return Figure(name, numbers, better, unit)
    return Figure(name, np.full(len(values), value), better, unit, resampled=False)


@lru_cache(maxsize=2)
def _index(include: str) -> Any:
    """The harness's own tasks and those in a folder, by name; takes seconds, so it is kept."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError("--harness-tasks needs lm-eval: pip install 'u2a[harness]'") from None
    folder = Path(include).expanduser() if include else None
    if folder and not folder.is_dir():
        raise UserError(f"--harness-include {include}: no such folder")
    with _quiet():
        return TaskManager(include_path=folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's advice for its own command line; its progress bars stay."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
