"""What greedy answers look like: a model that has collapsed, however likely good answers still are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from u2a import processes
from u2a.ngrams import AnswerShares, overlaps, repetition
from u2a.objectives import Reward
from u2a.passes.generation import greedy
from u2a.passes.positions import table_of_positions
from u2a.problem import Problem, Task, silent

Array = NDArray[np.float64]

PROMPTS, NEW_TOKENS = 16, 96
"""How many validation prompts are answered, and with how many tokens at most: answers that do not end begin
to repeat behind some fifty tokens (the study's finalists, docs/results.md)."""


def greedy_answers(problem: Problem, task: Task = silent) -> AnswerShares:
    """Of the current model's greedy answers to A validation prompts: whether they run in circles, and whether
    they are all the same.

    The same `PROMPTS` prompts at every φ, at most `NEW_TOKENS` tokens each, fewer where the model's table of
    positions is short: about that many forward passes of one token a prompt.
    """
    prompts, positions = _prompts(problem), table_of_positions(problem.policy.model)
    most = NEW_TOKENS if positions is None else min(NEW_TOKENS, positions // 2)
    with task("greedy answers", len(prompts)):
        answers = greedy(problem.policy, prompts, max_new_tokens=most)
    shares = AnswerShares(np.array([repetition(answer) for answer in answers]), np.array(overlaps(answers)))
    return processes.from_main(shares)


def rise_beyond_noise(before: Array, now: Array) -> float:
    """By how much a share has risen, the mean over the same A prompts; 0 where that is within noise.

    Noise is 1.96 standard errors of the A paired differences. One prompt has none, and counts as it is.
    """
    rises = np.asarray(now, np.float64) - np.asarray(before, np.float64)
    mean = float(rises.mean())
    error = float(rises.std(ddof=1)) / len(rises) ** 0.5 if len(rises) > 1 else 0.0
    return mean if mean > 1.96 * error else 0.0


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
