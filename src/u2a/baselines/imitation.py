"""Methods that imitate good answers, and the one that starts over without the bad ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from u2a.baselines.method_options import Checked
from u2a.baselines.stage import Stage
from u2a.config import option
from u2a.data.collate import tokenize_rows
from u2a.models.policy import load_policy
from u2a.training.finetune import fine_tune
from u2a.types import UserError

PAIRS = "Pairs to learn from: training (--pairs), or validation (those that J is measured on)."
PAIRS_OF = ("training", "validation")


@dataclass(frozen=True)
class Untouched:
    """The original model as it is: what everything is compared with."""

    needs: ClassVar[tuple[str, ...]] = ()

    def train(self, stage: Stage) -> None:
        """Nothing."""
        del stage


@dataclass(frozen=True)
class Sft(Checked):
    """Fine-tuning on the chosen answers of `pairs`, NLL of the answer's tokens: the first step of RLHF as in
    Ouyang et al. 2022 (arXiv 2203.02155)."""

    pairs: str = option("training", PAIRS, PAIRS_OF)

    @property
    def needs(self) -> tuple[str, ...]:
        """Training pairs, if they are what it learns from."""
        return ("training",) if self.pairs == "training" else ()

    def train(self, stage: Stage) -> None:
        """Trains in place."""
        chosen = tokenize_rows(stage.pairs(self.pairs), stage.problem.renderer, response="chosen")
        fine_tune(
            stage.problem.policy,
            chosen,
            epochs=1.0,
            max_steps=stage.budget.most_steps,
            learning_rate=stage.rate,
            schedule="constant",
            batch_size=stage.budget.batch_size,
            seed=stage.seed,
            callbacks=[stage.watch],
        )


@dataclass(frozen=True)
class Retrain(Checked):
    """The original model made anew without the bad answers: `pretrained` fine-tuned on the good ones of its
    mixture, as long and as fast as it was made; no budget holds it. What exact unlearning would give, as the
    retain model of TOFU (Maini et al. 2024, arXiv 2401.06121)."""

    needs: ClassVar[tuple[str, ...]] = ("mixture",)
    fixed_rate: ClassVar[bool] = True
    pretrained: str = option("", "Model that the original was made from: as --model.")
    epochs: float = option(3.0, "Passes, as for the original.", above=0)
    rate: float = option(5e-4, "Learning rate, as for the original.", above=0)

    def train(self, stage: Stage) -> None:
        """Puts a new policy in the stage and trains it."""
        if not self.pretrained:
            raise UserError("retrain needs `pretrained`: the model that the original was made from")
        if stage.mixture is None:
            raise UserError("--mixture is missing: the good answers that the original was made with")
        present = stage.problem.policy
        as_present = {
            "lora_rank": stage.rank,
            "dtype": str(present.model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        }
        own = {"seed": stage.seed, "device": present.device}
        policy = load_policy(self.pretrained, **{**as_present, **stage.load_options, **own})
        stage.replace_policy(policy)
        fine_tune(
            policy,
            tokenize_rows(stage.mixture, stage.problem.renderer),
            epochs=self.epochs,
            learning_rate=self.rate,
            batch_size=stage.budget.batch_size,
            seed=stage.seed,
        )
