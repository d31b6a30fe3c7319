"""Judge: which answers a language model prefers, which attacks it finds to have worked, what was refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from u2a.config import option
from u2a.evaluation.figure import Array, Figure, known_mean
from u2a.evaluation.own_judge import Judge, OwnJudge
from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.evaluation.judge_client import JudgeClient, Requests
    from u2a.evaluation.material import Material, Plan
    from u2a.evaluation.pairwise import YesNoVerdicts
    from u2a.evaluation.subject import Answered, Subject
    from u2a.types import Message

log = logging.getLogger("u2a")


@dataclass(frozen=True)
class LLMJudge:
    """By a language model behind an OpenAI-compatible endpoint, or a judge of your own, to which prompts
    and answers are sent, only with `--send-to-judge`: `judge_win`, share of held-out prompts whose answer
    it prefers to the original model's, asked in both orders, ties and contradictions half, ↑ (Zheng et
    al. 2023, arXiv 2306.05685; 0.5 for the original and for equal answers, which are not sent);
    `judge_harm`, share of unsafe prompts whose answer it finds to be the harm that was asked for, ↓
    (Mazeika et al. 2024, arXiv 2402.04249); `judge_refusal`, share of safe prompts whose answer it finds
    to refuse, if only in part, or to be empty, ↓ (Röttger et al. 2024, XSTest, arXiv 2308.01263). All are
    means over the prompts that got a verdict; `counts` in evaluation.json tells how many did not."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("prompts", "unsafe_prompts", "safe_prompts"),)
    asks: ClassVar[tuple[str, ...]] = ("judge_url", "judge")
    consent: ClassVar[str] = "send_to_judge"

    judge_url: str = option(
        "", "judge: an OpenAI-compatible endpoint, such as http://localhost:8000/v1; empty = leave it out."
    )
    judge: str = option(
        "",
        "judge: one of your own in the place of an endpoint: module:Class, or the name of an installed one.",
    )
    judge_model: str = option("", "judge: the model, as the endpoint names it.")
    judge_key_variable: str = option(
        "OPENAI_API_KEY", "judge: environment variable that holds the key.", flag_only=True
    )
    judge_concurrency: int = option(8, "judge: requests under way at once.", least=1)
    judge_max_tokens: int = option(
        1024, "judge: longest reply, in tokens; a reasoning model's thoughts count.", least=1
    )
    judge_price_in: float = option(0.0, "judge: price of a million tokens in; 0 = unknown.", least=0)
    judge_price_out: float = option(0.0, "judge: price of a million tokens out; 0 = unknown.", least=0)
    judge_cache: str = option(
        "", "judge: file of its answers, asked for once; empty = judge_answers.jsonl in the run folder."
    )
    send_to_judge: bool = option(
        False,
        "judge: allow prompts and answers to be sent to --judge-url, in full.",
        flag_only=True,
    )
    own_judge: Judge | None = None
    """The judge itself that `judge` names; from Python it is enough."""

    def __post_init__(self) -> None:
        if self.own_judge is not None and not self.judge:
            object.__setattr__(self, "judge", type(self.own_judge).__name__)

    @cached_property
    def client(self) -> JudgeClient | OwnJudge:
        """The judge, with what it has answered so far.

        Raises:
            UserError: the URL is none, or holds more than an address.
        """
        if self.own_judge is not None:
            return OwnJudge(self.own_judge, self.judge)
        from u2a.evaluation.judge_client import SAMPLING, JudgeClient

        try:
            return JudgeClient(
                self.judge_url,
                self.judge_model,
                Path(self.judge_cache or "judge_answers.jsonl"),
                key_variable=self.judge_key_variable,
                sampling={**SAMPLING, "max_tokens": self.judge_max_tokens},
                concurrency=self.judge_concurrency,
                price_in=self.judge_price_in or None,
                price_out=self.judge_price_out or None,
            )
        except UserError as error:
            raise UserError(f"--judge-url: {error}") from None

    def check(self) -> None:
        """Looks at the options, the key and the answers so far, before any model is loaded. Sends nothing.

        Raises:
            UserError: one of them is missing or unusable.
        """
        if self.judge and self.own_judge is None:
            raise UserError("own_judge is missing: the judge that --judge names")
        if self.own_judge is not None and self.judge_url:
            raise UserError("--judge and --judge-url: name only one of them")
        if self.own_judge is None and not self.judge_model:
            raise UserError("--judge-model is missing: the judge, as --judge-url names its models")
        self.client.check()

    def outlook(self, plan: Plan) -> str:
        """What would be sent where, at most, and for how much."""
        from u2a.evaluation.judge_client import BYTES_PER_TOKEN
        from u2a.evaluation.pairwise import HARM, REFUSAL, pair_requests

        longest = "x" * (plan.answer_tokens * BYTES_PER_TOKEN)
        roles = ("prompts", "unsafe_prompts", "safe_prompts")
        pairs, attacks, safe = (plan.prompts.get(role, []) for role in roles)
        asked: dict[str, Sequence[Message]] = {}
        for model in range(plan.models):
            own = f"{model} {longest}"
            requests = HARM.requests(attacks, [own] * len(attacks))
            requests |= REFUSAL.requests(safe, [own] * len(safe))
            if model:
                requests |= pair_requests(pairs, [own] * len(pairs), [longest] * len(pairs))
            asked |= {f"model {model}, {name}": messages for name, messages in requests.items()}
        kept = 0 if isinstance(self.client, OwnJudge) else self.client.kept()
        less = f", and none of the {kept:,} replies on disk were asked for again" if kept else ""
        return f"{self.client.describe(asked)}\n(at most: as if every answer had --max-new-tokens{less})"

    def measure(self, subject: Subject | Answered, material: Material) -> list[Figure]:
        """Those of the three whose prompts are there, a value a prompt and whether it has one.

        Raises:
            UserError: something would have to be sent without `send_to_judge`.
        """
        if not self.judge_url and self.own_judge is None:
            return []
        from u2a.evaluation.pairwise import HARM, REFUSAL

        found = []
        if material.prompts is not None:
            found.append(self._win(subject, material.prompts))
        if material.unsafe_prompts is not None:
            answers = _texts(subject, "unsafe_prompts", material.unsafe_prompts)
            shown = _Shown(self.client, subject)
            harm = HARM.verdicts(shown, material.unsafe_prompts, answers, consent=self.send_to_judge)
            found.append(_share_of_yes(subject, "judge_harm", harm))
        if material.safe_prompts is not None:
            answers = _texts(subject, "safe_prompts", material.safe_prompts)
            shown = _Shown(self.client, subject)
            refused = REFUSAL.verdicts(shown, material.safe_prompts, answers, consent=self.send_to_judge)
            found.append(_share_of_yes(subject, "judge_refusal", refused))
        return found

    def _win(self, subject: Subject | Answered, prompts: list[list[Message]]) -> Figure:
        from u2a.evaluation.pairwise import win_rate

        own = _texts(subject, "prompts", prompts)
        scores: Sequence[float | None] = [0.5] * len(prompts)
        counts: dict[str, int] = {}
        if subject.original is not None:
            theirs = _texts(subject.original, "prompts", prompts)
            found = win_rate(_Shown(self.client, subject), prompts, own, theirs, consent=self.send_to_judge)
            scores = found.scores
            counts = {
                "no_verdict": scores.count(None),
                "ties": found.ties,
                "identical": found.identical,
                "inconsistent": found.inconsistent,
                "parse_failures": found.parse_failures,
                "unanswered": found.unanswered,
            }
        return _figure(subject, "judge_win", scores, "higher", counts)


@dataclass(frozen=True)
class _Shown:
    """The judge with a progress bar."""

    client: JudgeClient | OwnJudge
    subject: Subject | Answered

    def ask(self, requests: Requests, *, consent: bool = False) -> dict[str, str | None]:
        with self.subject.task(f"{self.subject.name}: judge", len(requests)) as progress:
            return self.client.ask(requests, consent=consent, progress=progress)


def _texts(subject: Subject | Answered, role: str, prompts: list[list[Message]]) -> list[str]:
    return [answer.text for answer in subject.answers(role, prompts)]


def _share_of_yes(subject: Subject | Answered, name: str, found: YesNoVerdicts) -> Figure:
    counts = {
        "no_verdict": found.verdicts.count(None),
        "blank": found.blank,
        "parse_failures": found.parse_failures,
        "unanswered": found.unanswered,
    }
    return _figure(subject, name, found.verdicts, "lower", counts)


def _figure(
    subject: Subject | Answered,
    name: str,
    verdicts: Sequence[float | None],
    better: str,
    counts: Mapping[str, int],
) -> Figure:
    if none := counts.get("no_verdict", 0):
        log.warning("%s: %s: %d of %d prompts have no verdict", subject.name, name, none, len(verdicts))
    return Figure(name, _columns(verdicts), better, "share", known_mean, counts=counts)


def _columns(verdicts: Sequence[float | None]) -> Array:
    """(n, 2): the verdict, 0 where there is none; 1 = there is one."""
    return np.array([[v or 0.0, v is not None] for v in verdicts], np.float64).reshape(-1, 2)
