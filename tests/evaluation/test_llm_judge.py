"""The judge metric: figures by hand, prompts without a verdict, what is shown and refused beforehand."""

from __future__ import annotations

import logging
import math
import re
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from u2a.evaluation.llm_judge import LLMJudge
from u2a.evaluation.material import Material, Plan
from u2a.evaluation.subject import Answer
from u2a.problem import silent
from u2a.types import UserError


class Judge:
    """Says what is scripted for a request's name, None = nothing."""

    def __init__(self, said):
        self.said, self.asked, self.consents = said, [], set()

    def ask(self, requests, *, consent=False, progress=None):
        self.asked += requests
        self.consents.add(consent)
        if progress:
            progress(len(requests))
        return {name: self.said[name] for name in requests}


def pair(row, first, second):
    """What is said with our answer shown first, and with theirs."""
    return {f"prompt {row}, A first": first, f"prompt {row}, B first": second}


def metric(judge, **options):
    made = LLMJudge(judge_url="http://localhost:1/v1", judge_model="m", **options)
    made.__dict__["client"] = judge
    return made


def subject(original=None, task=silent, **answers):
    return SimpleNamespace(
        name="ours",
        original=original,
        task=task,
        answers=lambda role, _: [Answer(text, 1, True) for text in answers[role]],
    )


def prompts(n):
    return [[{"role": "user", "content": f"question {i}"}] for i in range(n)]


THEIRS = subject(prompts=["A", "B", "C", " same ", "D"])
OURS = subject(THEIRS, prompts=["a", "b", "c", "same", "d"])
MATERIAL = Material(prompts=prompts(5))
SAID = {
    **pair(0, "[[A]]", "[[B]]"),  # a win
    **pair(1, "[[C]]", "[[C]]"),  # a tie
    **pair(2, "[[A]]", "who knows"),  # no verdict
    **pair(4, "[[A]]", "[[A]]"),  # the one that is shown first, both times: a tie
}


def test_a_win_rate_by_hand(caplog):
    """1, ½, none, ½ (equal answers, not asked), ½: 2.5 / 4."""
    judge = Judge(SAID)
    (found,) = metric(judge, send_to_judge=True).measure(OURS, MATERIAL)
    assert (found.name, found.better, found.unit) == ("judge_win", "higher", "share")
    assert found.value == 2.5 / 4
    assert found.values.tolist() == [[1, 1], [0.5, 1], [0, 0], [0.5, 1], [0.5, 1]]
    assert dict(found.counts) == {
        "no_verdict": 1,
        "ties": 2,
        "identical": 1,
        "inconsistent": 1,
        "parse_failures": 1,
        "unanswered": 0,
    }
    assert judge.asked == list(SAID)
    assert judge.consents == {True}
    assert "ours: judge_win: 1 of 5 prompts have no verdict" in caplog.text


def test_without_consent_the_judge_is_told_so():
    judge = Judge(SAID)
    metric(judge).measure(OURS, MATERIAL)
    assert judge.consents == {False}


def test_the_original_wins_half_of_the_time_and_is_not_judged(caplog):
    """Its answers are made all the same: they stand in answers.jsonl."""
    judge, made = Judge({}), []
    original = subject(prompts=["A"] * 5)
    original.answers = lambda role, _: made.append(role) or [Answer("A", 1, True)] * 5
    (found,) = metric(judge).measure(original, MATERIAL)
    assert found.value == 0.5
    assert found.estimate() == (0.5, 0.5, 0.5, 5)
    assert not found.counts
    assert judge.asked == []
    assert made == ["prompts"]
    assert caplog.text == ""


def test_the_change_is_the_distance_from_a_half():
    """Every replicate of the original is ½, so the interval is the figure's own, moved."""
    (own,) = metric(Judge(SAID)).measure(OURS, MATERIAL)
    (base,) = metric(Judge({})).measure(THEIRS, MATERIAL)
    change, estimate = own.minus(base), own.estimate()
    assert change == pytest.approx([value - 0.5 for value in estimate[:3]] + [5])


def test_a_judge_that_never_answers_leaves_the_figure_undefined(caplog):
    ours = subject(subject(prompts=["A", "B", "C"]), prompts=["a", "b", "c"])
    (own,) = metric(Judge(dict.fromkeys(SAID))).measure(ours, Material(prompts=prompts(3)))
    assert math.isnan(own.value)
    assert own.counts["unanswered"] == 6
    assert "3 of 3 prompts have no verdict" in caplog.text


def test_harm_by_hand(caplog):
    """Yes, no, neither, and an answer without a word, which is harmless and not asked about: 1 / 3."""
    judge = Judge({"prompt 0": "Yes.", "prompt 1": "no", "prompt 2": "perhaps"})
    attacked = subject(unsafe_prompts=["Sure.", "Never.", "Well.", " "])
    (found,) = metric(judge, send_to_judge=True).measure(attacked, Material(unsafe_prompts=prompts(4)))
    assert (found.name, found.better, found.unit) == ("judge_harm", "lower", "share")
    assert found.value == pytest.approx(1 / 3)
    assert dict(found.counts) == {"no_verdict": 1, "blank": 1, "parse_failures": 1, "unanswered": 0}
    assert judge.consents == {True}
    assert "ours: judge_harm: 1 of 4 prompts have no verdict" in caplog.text


def test_refusal_of_safe_prompts_by_hand():
    """Yes, no, and an answer without a word, which turns its user away too: 2 / 3."""
    judge = Judge({"safe prompt 0": "Yes.", "safe prompt 1": "no"})
    ours = subject(safe_prompts=["I must decline.", "Sorry, it is 4.", ""])
    (found,) = metric(judge, send_to_judge=True).measure(ours, Material(safe_prompts=prompts(3)))
    assert (found.name, found.better, found.unit) == ("judge_refusal", "lower", "share")
    assert found.value == pytest.approx(2 / 3)
    assert dict(found.counts) == {"no_verdict": 0, "blank": 1, "parse_failures": 0, "unanswered": 0}


def test_both_figures_and_progress(caplog):
    caplog.set_level(logging.INFO)
    seen = []

    @contextmanager
    def task(name, total):
        yield lambda done: seen.append((name, total, done))

    judge = Judge({**pair(0, "[[A]]", "[[B]]"), "prompt 0": "no"})
    both = subject(subject(prompts=["A"]), task, prompts=["a"], unsafe_prompts=["Never."])
    found = metric(judge).measure(both, Material(prompts=prompts(1), unsafe_prompts=prompts(1)))
    assert [figure.value for figure in found] == [1.0, 0.0]
    assert seen == [("ours: judge", 2, 2), ("ours: judge", 1, 1)]
    assert caplog.text == ""


# -- before any model is loaded -----------------------------------------------------------------------------


def options(**changed):
    return LLMJudge(**{"judge_url": "http://localhost:1/v1", "judge_model": "m", **changed})


def test_the_options_reach_the_judge(tmp_path):
    made = options(
        judge_key_variable="MY_KEY",
        judge_concurrency=3,
        judge_max_tokens=77,
        judge_price_in=2.0,
        judge_price_out=4.0,
        judge_cache=str(tmp_path / "kept.jsonl"),
    )
    client = made.client
    assert (client.base_url, client.model, client.key_variable) == ("http://localhost:1/v1", "m", "MY_KEY")
    assert (client.concurrency, client.price_in, client.price_out) == (3, 2.0, 4.0)
    assert client.cache == tmp_path / "kept.jsonl"
    assert client.sampling == {"temperature": 0, "seed": 0, "max_tokens": 77}
    assert made.client is client
    unpriced = options().client
    assert (unpriced.price_in, unpriced.price_out) == (None, None)
    assert str(unpriced.cache) == "judge_answers.jsonl"


def test_what_would_be_sent_at_most(tmp_path):
    """Three models: two are compared with the original, in both orders, on two prompts (8 requests); all are
    attacked once (3). An answer of 10 tokens is 40 bytes: (8·2 + 3)·40 bytes are 190 tokens more than with
    empty ones."""
    made = options(judge_price_in=1.0, judge_price_out=1.0, judge_cache=str(tmp_path / "c"))
    said = [made.outlook(Plan({"prompts": prompts(2), "unsafe_prompts": prompts(1)}, 3, n)) for n in (0, 10)]
    assert "judge: m at http://localhost:1/v1 (this machine)" in said[0]
    assert "to send: 11 requests" in said[0]
    assert "at most 11,264 out" in said[0]
    assert "as if every answer had --max-new-tokens" in said[0]
    few, more = (int(re.search(r"about ([\d,]+) in", text)[1].replace(",", "")) for text in said)
    assert more - few == 190
    assert f"at most about {(more + 11264) / 1e6:.4f}" in said[1]
    assert "to send: 4 requests" in made.outlook(Plan({"prompts": prompts(2)}, 2, 1))
    every = {"prompts": prompts(2), "unsafe_prompts": prompts(1), "safe_prompts": prompts(3)}
    assert "to send: 12 requests" in made.outlook(
        Plan(every, 2, 1)
    )  # 4 of pairs, 2 of attacks, 6 of safe ones
    assert "to send: 2 requests" in made.outlook(
        Plan({"unsafe_prompts": prompts(1), "safe_prompts": []}, 2, 1)
    )


def test_what_is_missing_is_found_first(tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="the extra `judge` is not installed")
    monkeypatch.delenv("U2A_NO_SUCH", raising=False)
    cases = [
        ({"judge_model": ""}, "--judge-model is missing"),
        ({"judge_url": "judge.example"}, "--judge-url: the judge's URL is none"),
        (
            {"judge_url": "https://judge.example/v1", "judge_key_variable": "U2A_NO_SUCH"},
            "U2A_NO_SUCH is not set: it holds the key for https://judge.example/v1",
        ),
        ({"judge_cache": str(tmp_path)}, "the judge's answers"),
    ]
    for changed, words in cases:
        with pytest.raises(UserError, match=re.escape(words)):
            options(**changed).check()
    options(judge_key_variable="U2A_NO_SUCH").check()  # a judge on this machine may need none
    monkeypatch.setenv("U2A_NO_SUCH", "sk-some")
    options(judge_url="https://judge.example/v1", judge_key_variable="U2A_NO_SUCH").check()
    monkeypatch.setenv("U2A_NO_SUCH", "sk-ключ")
    with pytest.raises(UserError, match="U2A_NO_SUCH holds no key"):
        options(judge_key_variable="U2A_NO_SUCH").check()
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'u2a\[judge\]'"):
        options().check()
