"""A model under evaluation: its log-probs and its answers, each computed once and shared by all metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from u2a.data.collate import row_name
from u2a.logprobs import evaluating, response_logits
from u2a.passes.dataset import dataset_logprobs, fitting_apart
from u2a.passes.generation import continuations, ending_tokens
from u2a.problem import Task, silent
from u2a.types import GuardStop, UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.data.render import Renderer
    from u2a.models.policy import Policy
    from u2a.types import Message


class Answer(NamedTuple):
    """What a model answered: `text` without special tokens, `tokens` generated, `ended` by itself."""

    text: str
    tokens: int
    ended: bool


class TokenStatistics(NamedTuple):
    """Of one text, for each of its R response tokens: `logprob` (R,) in nats; `mean` and `spread` (R,), the
    expectation and standard deviation of the log-prob of a token drawn from the model there; `greedy` (R,)
    bool, whether it is the likeliest token."""

    logprob: NDArray[np.float64]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    greedy: NDArray[np.bool_]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; temperature 0 = greedy. The same for every model."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    batch_size: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Answered:
    """A model of which nothing is there but its answers, by role: enough for a judge of answers."""

    name: str
    known: Mapping[str, Sequence[Answer]]
    original: Answered | None = None
    task: Task = silent

    def answers(self, role: str, prompts: Sequence[list[Message]]) -> list[Answer]:
        """The answers to the prompts in that role.

        Raises:
            ValueError: they are not as many.
        """
        if len(self.known.get(role, ())) != len(prompts):
            raise ValueError(f"{self.name}: {len(prompts)} prompts have other answers ({role})")
        return list(self.known[role])


@dataclass
class Subject:
    """One model of an evaluation.

    Args:
        name: as the tables show it.
        original: the original model; None = this is it.
        max_tokens: padded tokens of one forward pass.
    """

    name: str
    policy: Policy
    renderer: Renderer
    sampling: Sampling = field(default_factory=Sampling)
    original: Subject | None = None
    max_tokens: int = 2048
    task: Task = silent
    _logprobs: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _answers: dict[str, list[Answer]] = field(default_factory=dict)
    _tokens: dict[str, list[TokenStatistics]] = field(default_factory=dict)

    @property
    def pad_token_id(self) -> int:
        """What fills a batch; any token will do under the mask."""
        pad = self.policy.tokenizer.pad_token_id
        return 0 if pad is None else pad

    def logprobs(self, role: str, texts: Dataset) -> NDArray[np.float64]:
        """Log-probs s (N,) of the texts in that role, summed over response tokens, in nats.

        Of a role that was asked about before, they are those of the texts given then: the original model's
        are of its own tokens, whichever model is compared with it.

        Raises:
            GuardStop: one is not finite; names the row.
        """
        if role not in self._logprobs:
            self._logprobs[role] = self.logprobs_now(f"log-probs, {role}", texts)
        return self._logprobs[role]

    def logprobs_now(self, work: str, texts: Dataset) -> NDArray[np.float64]:
        """Log-probs s (N,) of texts as the model is at this moment, changed for a metric; not remembered.

        Args:
            work: what is shown while it goes on.

        Raises:
            GuardStop: one is not finite; names the row.
        """
        with self.task(f"{self.name}: {work}", len(texts)) as progress:
            s = dataset_logprobs(
                self.policy.model,
                texts,
                max_tokens=self.max_tokens,
                pad_token_id=self.pad_token_id,
                progress=progress,
            )
        return s.double().numpy()

    def whole_model(self, metric: str) -> Any:
        """The transformers model itself, for a metric that changes it for a while.

        Raises:
            UserError: an adapter is on it.
        """
        if self.policy.has_adapter:
            raise UserError(f"{metric} changes weights, and {self.name} has an adapter: merge it first")
        return self.policy.model

    def remember(
        self, answers: Mapping[str, Sequence[Answer]], logprobs: Mapping[str, Sequence[float]]
    ) -> None:
        """Takes answers, and log-probs (N,) of the model's own tokens, both by role, as there already."""
        self._answers.update({role: list(each) for role, each in answers.items()})
        self._logprobs.update({role: np.asarray(s, np.float64) for role, s in logprobs.items()})

    def token_statistics(self, role: str, texts: Dataset) -> list[TokenStatistics]:
        """Statistics of every response token of the texts in that role, in their order.

        Raises:
            GuardStop: a log-prob is not finite.
        """
        if role not in self._tokens:
            found: list[TokenStatistics | None] = [None] * len(texts)
            model = self.policy.model
            sizes = {"max_tokens": self.max_tokens, "pad_token_id": self.pad_token_id}
            with (
                evaluating(model),
                torch.no_grad(),
                self.task(f"{self.name}: tokens, {role}", len(texts)) as progress,
            ):
                for attempt in fitting_apart(
                    model, texts, **sizes, kind="a forward pass for statistics", deal=False
                ):
                    with attempt as batch:
                        logits, targets, example = response_logits(model, batch)
                        for place, row in enumerate(batch.index.tolist()):
                            own = example == place
                            found[row] = each = _token_statistics(logits[own], targets[own])
                            if not np.isfinite(each.logprob).all():
                                name = row_name(texts, row)
                                raise GuardStop(f"a log-prob of {name} is not finite ({role})")
                        if progress:
                            progress(len(batch.index))
            self._tokens[role] = [each for each in found if each is not None]
        return self._tokens[role]

    def answers(self, role: str, prompts: Sequence[list[Message]]) -> list[Answer]:
        """Answers to the prompts in that role, in their order.

        Prompts are batched in order of length, so that every model gets the same batches, and with
        temperature the same draws.
        """
        if role not in self._answers:
            self._answers[role] = self._generate(role, self.renderer.encode_prompts(prompts))
        return self._answers[role]

    @property
    def all_answers(self) -> dict[str, list[Answer]]:
        """Every answer that a metric asked for, by role."""
        return dict(self._answers)

    @property
    def all_logprobs(self) -> dict[str, list[float]]:
        """Log-probs of the texts of every role that a metric asked for, by role."""
        return {role: s.tolist() for role, s in self._logprobs.items()}

    @property
    def vocabulary(self) -> str:
        """A hash of the tokens but for added ones, such as one for padding: models with another one cut the
        same text otherwise."""
        tokenizer = self.policy.tokenizer
        added = tokenizer.get_added_vocab()
        tokens = sorted(item for item in tokenizer.get_vocab().items() if item[0] not in added)
        return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()

    def _generate(self, role: str, prompts: list[list[int]]) -> list[Answer]:
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        found: list[Answer | None] = [None] * len(prompts)
        size = self.sampling.batch_size
        with self.task(f"{self.name}: answers, {role}", len(prompts)) as progress:
            for begin in range(0, len(order), size):
                rows = order[begin : begin + size]
                for row, answer in zip(rows, self._batch([prompts[i] for i in rows], begin), strict=True):
                    found[row] = answer
                if progress:
                    progress(len(rows))
        return [answer for answer in found if answer is not None]

    def _batch(self, prompts: list[list[int]], number: int) -> list[Answer]:
        sampling = self.sampling
        how = {"do_sample": True, "temperature": sampling.temperature} if sampling.temperature > 0 else {}
        answers = continuations(
            self.policy,
            prompts,
            seed=sampling.seed + number,
            max_new_tokens=sampling.max_new_tokens,
            **{"do_sample": False, "top_k": None, "top_p": None, **how},
        )
        ends = ending_tokens(self.policy)
        return [_answer(self.policy.tokenizer, tokens, ends) for tokens in answers]


def _token_statistics(logits: torch.Tensor, targets: torch.Tensor) -> TokenStatistics:
    logprobs = logits.log_softmax(-1).double()
    mean = (logprobs.exp() * logprobs).sum(-1)
    spread = ((logprobs.exp() * logprobs.square()).sum(-1) - mean.square()).clamp(min=0).sqrt()
    own = logprobs.gather(1, targets[:, None])[:, 0]
    greedy = logits.argmax(-1) == targets
    return TokenStatistics(*(value.cpu().numpy() for value in (own, mean, spread, greedy)))


def _answer(tokenizer: object, tokens: list[int], ends: set[int]) -> Answer:
    """Without the token that ended it, if one did."""
    ended = bool(tokens) and tokens[-1] in ends
    kept = tokens[:-1] if ended else tokens
    text = tokenizer.decode(kept, skip_special_tokens=True).strip()  # type: ignore[attr-defined]
    return Answer(text, len(kept), ended)
