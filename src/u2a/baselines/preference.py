"""Methods that learn from good answers beside bad ones, by TRL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from datasets import Dataset, concatenate_datasets

from u2a.baselines.imitation import PAIRS, PAIRS_OF
from u2a.baselines.method_options import Checked
from u2a.baselines.stage import Stage
from u2a.baselines.trl_run import answer_rows, one_prompt, pair_rows, run, seeded_order
from u2a.baselines.unlearning import ETA, SELECT, first_weights
from u2a.config import option
from u2a.data.collate import tokenize_rows
from u2a.passes.generation import sampled
from u2a.passes.positions import with_room
from u2a.types import UserError

AT_ONCE = 16
"""Prompts that are answered at once."""
BETA = "β, per nat; the larger, the closer to the original model."


@dataclass(frozen=True)
class Dpo(Checked):
    """DPO (Rafailov et al. 2023, arXiv 2305.18290) by TRL's `DPOTrainer`. With `pairs: validation` it has the
    very information that u2a has, and trains on what J is measured on."""

    pairs: str = option("training", PAIRS, PAIRS_OF)
    beta: float = option(0.1, BETA, above=0)

    @property
    def needs(self) -> tuple[str, ...]:
        """Training pairs, if they are what it learns from."""
        return ("training",) if self.pairs == "training" else ()

    def train(self, stage: Stage) -> None:
        """Trains in place."""
        rows = pair_rows(stage, stage.pairs(self.pairs))
        size = max(1, stage.budget.batch_size // 2)  # a pair has two answers
        run(stage, "DPOTrainer", "DPOConfig", rows, batch_size=size, beta=self.beta)


@dataclass(frozen=True)
class Kto(Checked):
    """KTO (Ethayarajh et al. 2024, arXiv 2402.01306) by TRL's `KTOTrainer`: the chosen answers of `pairs` are
    desirable; undesirable are the `rejected` ones or the `negatives`. Both kinds weigh the same in all. With
    `weighted`, u2a selects the negatives, and the loss of each is multiplied by its weight (of mean 1)."""

    pairs: str = option("training", PAIRS, PAIRS_OF)
    undesirable: str = option(
        "rejected", "Undesirable answers: those of the pairs, or the negatives.", ("rejected", "negatives")
    )
    weighted: bool = option(False, "Select and weight the negatives as u2a does.")
    select: str = option("50%", f"weighted: {SELECT[0].lower()}{SELECT[1:]}")
    eta: float = option(0.5, f"weighted: {ETA[0].lower()}{ETA[1:]}", least=0)
    beta: float = option(0.1, BETA, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighted and self.undesirable != "negatives":
            raise UserError("weighted is for negatives: it needs `undesirable: negatives`")

    @property
    def needs(self) -> tuple[str, ...]:
        """Training pairs, if they are what it learns from."""
        return ("training",) if self.pairs == "training" else ()

    def train(self, stage: Stage) -> None:
        """Trains in place."""
        good = tokenize_rows(stage.pairs(self.pairs), stage.problem.renderer, response="chosen")
        if self.undesirable == "negatives":
            weights = first_weights(stage, self.select, self.eta) if self.weighted else stage.problem.prior
            usable = np.flatnonzero(weights > 0)
            bad = stage.problem.negative_texts.select(usable)
        else:
            bad = tokenize_rows(stage.pairs(self.pairs), stage.problem.renderer, response="rejected")
        rows = answer_rows(good, True) + answer_rows(bad, False)
        if self.weighted:
            shares = [1.0] * len(good) + (weights[usable] / weights[usable].mean()).tolist()
            rows = [{**row, "weight": share} for row, share in zip(rows, shares, strict=True)]
        mixed = Dataset.from_list([rows[i] for i in seeded_order(len(rows), stage.seed)])
        size = stage.budget.batch_size
        rows_in_all = _filled_up(mixed, size)
        run(
            stage,
            "KTOTrainer",
            "KTOConfig",
            with_neighbours(rows_in_all, size),
            batch_size=size,
            beta=self.beta,
            desirable_weight=max(1.0, len(bad) / len(good)),
            undesirable_weight=max(1.0, len(good) / len(bad)),
        )


def _filled_up(rows: Dataset, size: int) -> Dataset:
    """A last batch of one row has no neighbour: it begins again at the first row."""
    if len(rows) % size != 1 or size == 1:
        return rows
    return concatenate_datasets([rows, rows.select([0])])


def with_neighbours(rows: Dataset, size: int) -> Dataset:
    """Adds `KL_completion_ids`: within each batch of `size`, the answer of the row before, as KTO's estimate
    of its KL term takes it (in order, so the rows must not be shuffled after)."""
    answers = rows["completion_ids"]
    found: list[list[int]] = []
    for begin in range(0, len(rows), size):
        batch = answers[begin : begin + size]
        found += [batch[-1], *batch[:-1]]
    return rows.add_column("KL_completion_ids", found)


@dataclass(frozen=True)
class D2o(Checked):
    """Distributional dispreference optimisation (Duan et al. 2024, arXiv 2403.03419): the negatives are
    pushed down against answers that the original model itself gives to their prompts. One pair of DPO for
    each of `samples` answers, where the paper has one logistic function of their mean: by Jensen's inequality
    an upper bound of its loss, equal for one sample."""

    needs: ClassVar[tuple[str, ...]] = ()
    samples: int = option(1, "Own answers to each negative's prompt.", least=1)
    longest: int = option(64, "Tokens of an own answer at most.", least=1)
    beta: float = option(0.1, BETA, above=0)

    def train(self, stage: Stage) -> None:
        """Samples, then trains in place."""
        problem = stage.problem
        usable: list[int] = np.flatnonzero(problem.prior > 0).tolist()
        bad = answer_rows(problem.negative_texts.select(usable), False)
        whole = [problem.renderer.encode_prompt(p) for p in problem.negatives["prompt"]]
        bos = problem.policy.tokenizer.bos_token_id
        prompts = with_room(problem.policy.model, whole, self.longest, bos)
        texts = [text.strip() for text in problem.negatives["response"]]
        rows = [
            one_prompt((prompts[i], own), (negative["prompt_ids"], negative["completion_ids"]))
            for k in range(self.samples)
            for i, negative, own in zip(usable, bad, self._own(stage, prompts, usable, k), strict=True)
            if _text(stage, own) not in ("", texts[i])  # nothing to tell apart
        ]
        if not rows:
            raise UserError(
                "d2o: every own answer is empty or the negative itself, so there is nothing to prefer; raise "
                "`samples` or `longest`"
            )
        size = max(1, stage.budget.batch_size // 2)
        run(stage, "DPOTrainer", "DPOConfig", Dataset.from_list(rows), batch_size=size, beta=self.beta)

    def _own(
        self, stage: Stage, prompts: Sequence[list[int]], usable: Sequence[int], k: int
    ) -> list[list[int]]:
        """Draw k for each prompt that is used, from the model's own distribution: token ids, with the one
        that ended it, or without where none did within `longest`."""
        order = sorted(usable, key=lambda i: (-len(prompts[i]), i))
        found: dict[int, list[int]] = {}
        with stage.task(f"own answers, {k + 1} of {self.samples}", len(order)) as progress:
            for begin in range(0, len(order), AT_ONCE):
                some = order[begin : begin + AT_ONCE]
                seed = int(np.random.SeedSequence((stage.seed, k, begin)).generate_state(1)[0])
                drawn = sampled(
                    stage.problem.policy,
                    [prompts[i] for i in some],
                    max_new_tokens=self.longest,
                    seed=seed,
                )
                found.update(zip(some, drawn, strict=True))
                if progress:
                    progress(len(some))
        return [found[i] for i in usable]


def _text(stage: Stage, tokens: list[int]) -> str:
    text: str = stage.problem.policy.tokenizer.decode(tokens, skip_special_tokens=True)
    return text.strip()
