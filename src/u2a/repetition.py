"""The guard on repetition: it tells a model that has collapsed, however likely good answers still are."""

from __future__ import annotations

import numpy as np

from u2a import processes
from u2a.generation import continuations
from u2a.ngrams import repetition
from u2a.objectives import Reward
from u2a.problem import Problem, Task, silent

PROMPTS, NEW_TOKENS = 8, 48
"""How many validation prompts the guard answers, and with how many tokens at most."""


def greedy_repetition(problem: Problem, task: Task = silent) -> float:
    """Mean `repetition` of the current model's greedy answers to a few validation prompts, in tokens.

    The same `PROMPTS` prompts at every φ, at most `NEW_TOKENS` tokens each: about that many forward passes of
    one token a prompt.
    """
    prompts = _prompts(problem)
    with task("greedy answers", len(prompts)):
        answers = continuations(
            problem.policy,
            prompts,
            seed=0,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            top_k=None,
            top_p=None,
        )
    return processes.from_main(float(np.mean([repetition(answer) for answer in answers])))


def _prompts(problem: Problem) -> list[list[int]]:
    """The first few different validation prompts, as tokens."""
    objective = problem.objective
    if isinstance(objective, Reward):
        every = objective.prompts
    else:
        columns = objective.texts.select_columns(["input_ids", "response_start"])
        every = [row["input_ids"][: row["response_start"]] for row in columns]
    different = {tuple(prompt): list(prompt) for prompt in every if len(prompt)}
    return list(different.values())[:PROMPTS]
