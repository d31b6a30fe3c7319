"""The reward objective: what a scorer says of the model's own answers, less what they cost in KL.

No text is fixed here: J is an expectation over what the model says itself. So `Reward` is no objective yet
but draws one: at some φ it samples responses, has them scored, and `DrawnReward` is J as a function of their
log-probs, exact in value and gradient (in expectation) at that φ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from u2a import processes
from u2a.config import check_options, option
from u2a.objectives.drawn_reward import DrawnReward
from u2a.types import GuardStop, UserError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import Tensor

    from u2a.data.render import Renderer
    from u2a.models.policy import Policy
    from u2a.passes.dataset import Task
    from u2a.scorers import Scorer


def prompt_room(max_new_tokens: int, max_length: int) -> int:
    """Tokens that are left for a prompt.

    Raises:
        UserError: fewer than 2.
    """
    if max_length - max_new_tokens < 2:
        flags = f"--objective-max-new-tokens {max_new_tokens}", f"--max-length {max_length}"
        raise UserError(f"{flags[0]} leaves no room for prompts within {flags[1]}")
    return max_length - max_new_tokens


@dataclass
class Reward:
    """J = E_{y∼π_φ}[r(x, y)] − β·KL(π_φ ‖ π_ref), mean over validation prompts; higher = better.

    In the scorer's unit. KL is that of whole responses, in nats, y a response of at most `max_new_tokens`
    tokens. Responses are drawn at temperature 1: the gradient is that of the distribution they come from, and
    J is about π_φ itself.

    J is measured with new responses at every φ, always from the same seed: weights of old responses would
    degrade within the budgets of an inner run (0.1 nats a token are 6 nats for 64 tokens, and leave no
    effective samples), and would be fitted to the very responses that ∇J came from. Equal seeds are common
    random numbers: a token is drawn as the largest of log-probs plus noise, and the same noise picks the same
    token until the two models differ there, so small changes of J are measured better than two draws would.
    Each figure of J still has a standard error of about σ/√(P·K), σ the spread of rewards within a prompt
    (`standard_error`), and the best of several measured points is too high by about one of it.

    Args:
        rows: P validation rows with their `prompt`.
        renderer: with room for the response: its `max_length` is that of the prompt alone.
        scorer: rewards of answers as text, without special tokens.
        seed: of all draws.

    Example:
        >>> from u2a import load_negatives, load_policy, prepare, tiny_model
        >>> rows = load_negatives([{"prompt": "Hello!", "completion": "Go away."}])
        >>> problem = prepare(
        ...     load_policy(tiny_model(), lora_rank=2),
        ...     negatives=rows,
        ...     preferences=rows,  # prompts are enough
        ...     objective="reward",
        ...     objective_options={"samples": 2, "max_new_tokens": 4},
        ...     scorer=lambda prompts, answers: [float(len(answer)) for answer in answers],
        ... )
        >>> at = problem.measure()
        >>> at.objective >= 0 and at.drawn.rewards.shape == (2,)
        True
    """

    rows: Dataset
    renderer: Renderer
    scorer: Scorer
    beta: float = option(0.1, "β of the objective.", least=0)
    samples: int = option(4, "reward: K, responses drawn for each validation prompt.", least=2)
    max_new_tokens: int = option(64, "reward: longest response, in tokens.", least=1)
    reward_model: str = option("", "reward: scorer, a sequence-classification model: folder or Hub id.")
    reward_function: str = option(
        "", "reward: scorer, a Python function, module:function. It runs.", flag_only=True
    )
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def of_rows(
        cls,
        rows: Dataset,
        renderer: Renderer,
        scorer: Scorer | None = None,
        *,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> Reward:
        """From validation rows and the renderer of whole texts.

        Args:
            scorer: default what the options name. device: where a reward model goes.

        Raises:
            UserError: an option is out of range or leaves no room for a prompt, or there is no scorer.
        """
        from u2a.data.render import Renderer
        from u2a.scorers import named_scorer

        if scorer is None:
            named = options.get("reward_model", ""), options.get("reward_function", "")
            scorer = named_scorer(*named, device)
        made = cls(rows, renderer, scorer, **options)
        room = prompt_room(made.max_new_tokens, renderer.max_length)
        return replace(made, renderer=Renderer(renderer.tokenizer, renderer.template, room))

    def on(self, rows: Dataset) -> Reward:
        """The same on other rows: J on held-out prompts, say."""
        return replace(self, rows=rows)

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Tokens of the P prompts, cut on the left.

        Raises:
            UserError: the chat template refuses one; names file and row.
        """
        found = []
        for row, prompt in enumerate(self.rows["prompt"]):
            try:
                found.append(self.renderer.encode_prompt(prompt))
            except UserError as error:
                raise UserError(f"{self._place(row)}: {error}") from error
        return found

    @property
    def texts(self) -> Dataset:
        """The prompts as tokenised texts without responses: what tells one validation set from another."""
        return self._texts(self.prompts, [[] for _ in self.prompts])

    @property
    def most_tokens(self) -> int:
        """Tokens of P·K prompts with responses of full length."""
        return self.samples * sum(len(prompt) + self.max_new_tokens for prompt in self.prompts)

    def sample(self, policy: Policy, max_tokens: int, task: Task) -> Dataset:
        """K responses to each prompt from the model as it is, as tokenised texts in the prompts' order.

        Args:
            max_tokens: padded tokens of a batch. The batches, and so the draws, are the same for every φ; of
                several processes each draws some batches.
        """
        from u2a.models.sharding import is_sharded
        from u2a.passes.generation import sampled

        prompts = [prompt for prompt in self.prompts for _ in range(self.samples)]
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        found: dict[int, list[int]] = {}
        begin = number = 0
        with task("drawing responses", len(prompts)) as progress:
            while begin < len(order):
                width = len(prompts[order[begin]]) + self.max_new_tokens
                batch = order[begin : begin + max(1, max_tokens // width)]
                seed = int(np.random.SeedSequence((self.seed, begin)).generate_state(1)[0])
                if number % processes.count() == processes.index() or is_sharded(policy.model):
                    some = [prompts[i] for i in batch]
                    drawn = sampled(policy, some, max_new_tokens=self.max_new_tokens, seed=seed)
                    found.update(zip(batch, drawn, strict=True))
                begin, number = begin + len(batch), number + 1
                if progress:
                    progress(len(batch))
        for others in reversed(processes.gathered(found)):
            found |= others
        return self._texts(prompts, [found[i] for i in range(len(prompts))])

    def draw(
        self,
        policy: Policy,
        logprobs: Callable[[Dataset], Tensor],
        reference_logprobs: Callable[[Dataset], Tensor],
        max_tokens: int,
        task: Task,
    ) -> DrawnReward:
        """Samples at the current φ, scored.

        Args:
            logprobs, reference_logprobs: s (N,) of tokenised texts at the current φ, and under π_ref.

        Raises:
            UserError: the scorer does not give one number for each answer.
            GuardStop: a reward or a log-prob is not finite; names the prompt.
        """
        from torch import as_tensor

        texts = self.sample(policy, max_tokens, task)
        with task("scoring responses", len(texts)):
            with processes.as_one():  # the scorer is asked once
                scored = self._scored(self._answers(texts, policy)) if processes.is_main() else None
            rewards = processes.from_main(scored)
        with task("log-probs of the responses", len(texts)):
            s = logprobs(texts)
            reference = reference_logprobs(texts) if self.beta > 0 else s
        return DrawnReward(texts, s, reference, as_tensor(rewards), self.samples, self.beta)

    def _texts(self, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> Dataset:
        from u2a.data.collate import token_rows

        rows = [int(row) for row in self.rows["row"] for _ in range(len(prompts) // len(self.rows))]
        return token_rows(rows, prompts, responses)

    def _answers(self, texts: Dataset, policy: Policy) -> list[str]:
        """What the scorer reads: without the token that ended the answer."""
        from u2a.passes.generation import ending_tokens

        ends, decode = ending_tokens(policy), policy.tokenizer.decode
        found, columns = [], texts[:]
        for ids, start in zip(columns["input_ids"], columns["response_start"], strict=True):
            response = ids[start:-1] if ids[-1] in ends else ids[start:]
            found.append(decode(response, skip_special_tokens=True).strip())
        return found

    def _scored(self, answers: list[str]) -> np.ndarray:
        """Rewards (N,) float64, refused where they are no finite numbers."""
        prompts = [prompt for prompt in self.rows["prompt"] for _ in range(self.samples)]
        found = self.scorer(prompts, answers)
        try:
            rewards = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"the scorer must give numbers: {error}") from None
        if rewards.shape != (len(answers),):
            raise UserError(
                f"the scorer gave shape {rewards.shape} for {len(answers)} answers: one number each is needed"
            )
        bad = np.flatnonzero(~np.isfinite(rewards))
        if len(bad):
            raise GuardStop(
                f"the reward of an answer to the prompt of {self._place(int(bad[0]) // self.samples)} is "
                f"{rewards[bad[0]]} ({len(bad)} of {len(rewards)} are not finite): look at the scorer"
            )
        return rewards

    def _place(self, prompt: int) -> str:
        from u2a.data.load import locate

        row = self.rows[prompt]
        if "source_row" in row:
            return "{}, row {}".format(*locate(self.rows, row["source_row"]))
        return f"row {row['row']}"
