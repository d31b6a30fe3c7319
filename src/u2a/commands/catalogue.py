"""Every command: what it is for, its options, and an example of its use."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from u2a.commands import schemas
from u2a.commands.flags import FILE, MODELS, RUN, RUNS
from u2a.evaluation import METRICS
from u2a.schema import Schema


@dataclass(frozen=True)
class Command:
    """One command; its work is `run` in `u2a.commands.<name>`.

    `arguments` stand before the flags. `takes_config`: whether options may come from a YAML file. `example`
    is a whole command line; `notes` come after it at the end of `--help`.
    """

    name: str
    about: str
    schema: Schema
    arguments: tuple[inspect.Parameter, ...] = ()
    takes_config: bool = True
    example: str = ""
    notes: str = ""

    @property
    def epilog(self) -> str:
        """What ends `--help`; after `\\b` click keeps the lines as they are."""
        flags_with_values = re.sub(r"(--\S+) (?!-)", "\\1\N{NO-BREAK SPACE}", self.example)
        lines = textwrap.wrap(flags_with_values, 72, break_long_words=False, break_on_hyphens=False)
        example = " \\\n      ".join(lines).replace("\N{NO-BREAK SPACE}", " ")
        return f"\b\nExample:\n  {example}\n\n{self.notes}"


_ROLES = "--model my-model --negatives bad.jsonl --preferences pairs.jsonl --retain good.jsonl"

_METHODS = (
    "original, u2a, uniform, random-k, selected, weights, cosine, static, "
    "sft, retrain, dpo, kto, d2o, rloo, climb"
)
"""Those of `u2a.baselines`, which take seconds to import: a test compares."""

COMMANDS = (
    Command(
        "check",
        "Is my data usable? Problems by file and row.",
        schemas.CHECK,
        example="u2a check --negatives bad.jsonl --preferences pairs.jsonl --retain good.jsonl",
    ),
    Command(
        "split",
        "Cut pairs into original, forget, retain, validation and test.",
        schemas.SPLIT,
        arguments=(FILE,),
        example="u2a split all_pairs.jsonl --output parts",
    ),
    Command(
        "impact",
        "Which negatives matter, and what would they cost?",
        schemas.IMPACT,
        example=f"u2a impact {_ROLES} --output runs/impact",
    ),
    Command(
        "align",
        "The main job: score, select, weight and unlearn negatives.",
        schemas.ALIGN,
        example=f"u2a align {_ROLES} --test held_out.jsonl --output runs/align",
    ),
    Command(
        "verify",
        "May I trust the impact scores? Unlearns subsets for real and compares.",
        schemas.VERIFY,
        example=f"u2a verify {_ROLES} --output runs/verify",
    ),
    Command(
        "evaluate",
        "Did it work, what did it break? The original model beside the others.",
        schemas.EVALUATE,
        arguments=(MODELS,),
        example="u2a evaluate runs/align --test held_out.jsonl --retain good.jsonl --output runs/evaluation",
        notes="\n\n".join(f"{name}: {inspect.cleandoc(cls.__doc__ or '')}" for name, cls in METRICS.items()),
    ),
    Command(
        "compare",
        "Was it better than what I would have done? Methods at one budget, over several seeds.",
        schemas.COMPARE,
        example="u2a compare --config compare.yaml --output runs/compare",
        notes=f"Methods, by name or with options under `methods:` of the file: {_METHODS}. "
        "docs/comparison.md has their options.",
    ),
    Command(
        "plan",
        "What would it cost? Operations, hours, bytes and money, before there is a run.",
        schemas.PLAN,
        example="u2a plan --model-params 8e9 --negatives 1e6 --tokens 300 --devices 8",
    ),
    Command(
        "report",
        "Show me: one HTML file of one or several runs.",
        schemas.REPORT,
        arguments=(RUNS,),
        takes_config=False,
        example="u2a report runs/align runs/align-2 --output both.html",
    ),
    Command(
        "review",
        "Mark negatives that are not bad after all, largest impact first.",
        schemas.REVIEW,
        arguments=(RUN,),
        takes_config=False,
        example="u2a review runs/align",
    ),
    Command(
        "chat",
        "Talk to the original model and others, side by side.",
        schemas.CHAT,
        arguments=(MODELS,),
        takes_config=False,
        example="u2a chat runs/align --serve",
    ),
    Command(
        "demo",
        "Everything on a small real model, with nothing of your own.",
        schemas.DEMO,
        example="u2a demo",
    ),
)


def options_elsewhere(name: str, keys: Sequence[str]) -> str:
    """What is said of keys in a YAML file for the command `name` that are options of other commands; "" where
    there are none. Of several keys those are named that the same commands have."""
    takers = {
        key: [c.name for c in COMMANDS if c.takes_config and (key in c.schema.specs or key in c.schema.aside)]
        for key in keys
    }
    first = next((found for found in takers.values() if found), [])
    alike = [f"`{key}`" for key in keys if first and takers[key] == first]
    if not alike:
        return ""
    are, them = ("is an option", "it") if len(alike) == 1 else ("are options", "them")
    whose = " and ".join(part for part in (", ".join(first[:-1]), first[-1]) if part)
    return f"{', '.join(alike)} {are} of u2a {whose}, not of u2a {name}; leave {them} out"
