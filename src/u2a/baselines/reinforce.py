"""Reinforcement learning from a reward, by TRL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import Dataset
from transformers import PrinterCallback

from u2a.baselines.method_options import Checked
from u2a.baselines.stage import Stage
from u2a.baselines.trl_run import classes, common_arguments, lent, own_numbers
from u2a.config import option
from u2a.training.config import arguments_for
from u2a.types import Message, UserError


@dataclass(frozen=True)
class Rloo(Checked):
    """RLHF by leave-one-out REINFORCE (Ahmadian et al. 2024, arXiv 2402.14740), TRL's `RLOOTrainer`: answers
    are sampled to the validation prompts and scored by the reward model. Prompts are rendered by TRL."""

    needs: ClassVar[tuple[str, ...]] = ("reward",)
    samples: int = option(4, "Answers to each prompt, compared with one another.", least=2)
    longest: int = option(64, "Tokens of an answer at most.", least=1)
    beta: float = option(0.05, "Weight of the KL from the original model; 0 = none.", least=0)

    def check_prompts(self, prompts: int, batch_size: int) -> None:
        """Refuses too few prompts for a step: TRL leaves out an incomplete batch, and would train nothing.

        Raises:
            UserError: names both numbers.
        """
        if prompts < (needed := max(1, batch_size // self.samples)):
            raise UserError(
                f"a step of --batch-size {batch_size} takes {needed} prompts of {self.samples} samples each, "
                f"and there are {prompts} validation prompts; raise `samples` or lower --batch-size"
            )

    def train(self, stage: Stage) -> None:
        """Samples and trains in place."""
        self.check_prompts(len(stage.validation), stage.budget.batch_size)
        scorer = stage.scorer
        if scorer is None:
            raise UserError("--reward-model is missing: what answers are scored by")

        if stage.problem.policy.tokenizer.chat_template is None:
            raise UserError("rloo needs a tokenizer with a chat template: TRL renders its prompts with it")

        def reward(
            prompts: Sequence[list[Message]], completions: Sequence[list[Message]], **_: Any
        ) -> list[float]:
            return [float(v) for v in scorer(prompts, [c[-1]["content"] for c in completions])]

        size = max(self.samples, stage.budget.batch_size // self.samples * self.samples)
        trainer, config = classes("RLOOTrainer", "RLOOConfig")
        args = arguments_for(
            config,
            **common_arguments(stage, size),
            num_generations=self.samples,
            max_completion_length=self.longest,
            beta=self.beta,
        )
        prompts = Dataset.from_list([{"prompt": list(p)} for p in stage.validation["prompt"]])
        with lent(stage.problem.policy) as model:
            with own_numbers(model):
                made = trainer(
                    model=model,
                    reward_funcs=reward,
                    args=args,
                    train_dataset=prompts,
                    processing_class=stage.problem.policy.tokenizer,
                    callbacks=[stage.watch],
                )
            made.remove_callback(PrinterCallback)
            made.train()
