"""Numbers that are not finite: the message names the row, and where it is."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from problems import answers, tiny_problem
from u2a import problem as problem_module
from u2a.impact.context import ScoringContext
from u2a.impact.gradient import weighted_logprob_gradient
from u2a.ngrams import AnswerShares
from u2a.problem import Measurement, Problem
from u2a.types import GuardStop


@pytest.mark.parametrize(
    "role, words",
    [
        ("objective", "measuring J on the validation rows: the log-prob of row 1 is nan"),
        ("utility", "measuring U and KL on the retain rows: the log-prob of row 1 is nan"),
    ],
)
def test_a_log_prob_says_whose_it_is(monkeypatch, role, words):
    tiny = tiny_problem()
    texts = getattr(tiny, role).texts
    from u2a import logprobs
    from u2a.passes import dataset as passes

    real, wanted = logprobs.response_logits, texts[1]["input_ids"]

    def poisoned(model, batch):
        logits, targets, example = real(model, batch)
        hit = [wanted == row[: len(wanted)].tolist() for row in batch.input_ids]
        if batch.input_ids.shape[1] >= len(wanted) and any(hit):
            logits = torch.where((example == hit.index(True))[:, None], logits * float("nan"), logits)
        return logits, targets, example

    monkeypatch.setattr(passes, "can_pack", lambda *_: False)
    monkeypatch.setattr(logprobs, "response_logits", poisoned)
    monkeypatch.setattr(problem_module, "response_logits", poisoned)
    with pytest.raises(GuardStop) as caught:
        tiny.measure()
    assert str(caught.value).startswith(words)


def test_kl_names_its_row(monkeypatch):
    tiny = tiny_problem()
    real = problem_module.kl_per_token

    def infinite(policy, reference):
        found = real(policy, reference)
        return torch.where(torch.arange(len(found)) == 0, found * float("inf") + float("inf"), found)

    monkeypatch.setattr(problem_module, "kl_per_token", infinite)
    with pytest.raises(GuardStop, match=r"KL from the original model of row \d is inf"):
        tiny.measure()


def test_j_that_is_not_finite_stops_though_log_probs_are():
    tiny = tiny_problem()
    factors = torch.tensor([1, 1, torch.inf, 1])
    broken = SimpleNamespace(texts=tiny.objective.texts, terms=lambda s: s[:4] * factors)
    with pytest.raises(GuardStop, match="J is not finite: its term number 2 of 4"):
        replace(tiny, objective=broken).measure()


def test_a_gradient_names_its_row(monkeypatch):
    tiny = tiny_problem(negatives=answers([("Hi.", "No."), ("What?", "Never, never."), ("Oh.", "Go.")]))
    from u2a.impact import gradient

    real, wanted = gradient.response_logprobs, tiny.negative_texts[1]["input_ids"]

    def steep(model, batch):
        s = real(model, batch)
        hit = torch.tensor([set(wanted) <= set(row.tolist()) for row in batch.input_ids])
        zero = torch.where(hit, s - s.detach(), torch.ones_like(s))
        return s + torch.where(hit, zero.abs().sqrt(), torch.zeros_like(s))

    from u2a.passes import dataset as passes

    monkeypatch.setattr(passes, "can_pack", lambda *_: False)
    monkeypatch.setattr(gradient, "response_logprobs", steep)
    with pytest.raises(GuardStop, match="is not finite: that of row 1 is the first"):
        weighted_logprob_gradient(ScoringContext.of(tiny), tiny.negative_texts, torch.ones(3))


def test_a_score_names_its_row(monkeypatch):
    from u2a.impact.table import score_impact

    tiny = tiny_problem()
    real = type(tiny.loss).derivative

    def infinite(self, s, reference, lengths):
        return real(self, s, reference, lengths) * torch.where(torch.arange(len(s)) == 2, torch.inf, 1.0)

    monkeypatch.setattr(type(tiny.loss), "derivative", infinite)
    with pytest.raises(GuardStop, match=r"the impact of row 2 is -?inf \(1 of 6 rows"):
        score_impact(tiny)


def test_a_measurement_shows_repetition_only_where_there_is_one():
    assert "repetition" not in Problem.measure(tiny_problem()).figures
    shares = AnswerShares(np.array([0.25, 0.75]), np.array([1.0, 0.5]))
    with_one = Measurement(0.0, 0.0, None, torch.zeros(1), torch.zeros(1), answers=shares)
    assert with_one.figures["repetition"] == 0.5
    assert with_one.figures["overlap"] == 0.75
