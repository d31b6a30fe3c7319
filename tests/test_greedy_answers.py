"""Greedy answers: what is measured on them, what the guard on repetition ends, and that off it is free."""

import numpy as np
import pytest

from problems import tiny_problem
from u2a.alignment import measuring, outer_loop
from u2a.alignment.outer_loop import align
from u2a.answers import greedy_answers, rise_beyond_noise
from u2a.config import OuterOptions, UnlearnOptions
from u2a.ngrams import AnswerShares, overlaps, repetition


def test_share_of_repeated_n_grams():
    """1 2 3 4 1 2 3 4 1 has six 4-grams, four of them different: 1 − 4/6."""
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4, 1]) == pytest.approx(1 / 3)
    assert repetition([1, 2, 3]) == 0.0


def test_share_of_n_grams_that_other_texts_have_too():
    """With its beginning "a b a b" has ^a, ab twice and ba, and "a b c" has ^a, ab and bc. They share ^a
    and ab once, since ab counts as often as one other text has it: 2 of 4, and 2 of 3. "d" shares nothing."""
    assert overlaps([list("abab"), list("abc"), ["d"]]) == pytest.approx([2 / 4, 2 / 3, 0.0])
    assert overlaps([["no"], ["no"], []]) == [1.0, 1.0, 0.0]
    assert overlaps([["sorry", "no"]] * 3) == [1.0] * 3
    assert overlaps([list("ab")]) == [0.0]  # nothing to be like
    assert overlaps([]) == []


def test_it_is_measured_on_greedy_answers_to_the_validation_prompts(monkeypatch):
    from u2a import answers as module

    tiny, asked = tiny_problem(), []

    def answer(_policy, prompts, *, max_new_tokens):
        asked.append((prompts, max_new_tokens))
        return [[5, 5, 5, 5, 5, 5], *([[1, 2, 3, 4, 5]] * (len(prompts) - 1))]

    monkeypatch.setattr(module, "greedy", answer)
    found = greedy_answers(tiny)
    assert found.repetition == pytest.approx([2 / 3, 0, 0, 0])  # of four prompts, asked once each
    assert found.overlap == pytest.approx([0, 1, 1, 1])
    ((prompts, most),) = asked
    texts = tiny.objective.texts
    assert prompts == [texts[i]["input_ids"][: texts[i]["response_start"]] for i in range(4)]
    assert most == module.NEW_TOKENS


def test_a_real_model_gives_the_same_share_twice():
    tiny = tiny_problem()
    found = greedy_answers(tiny)
    for share, again in zip(found, greedy_answers(tiny), strict=True):
        assert len(share) == 4
        assert 0 <= share.min() <= share.max() <= 1
        np.testing.assert_array_equal(again, share)


def test_a_short_table_of_positions_leaves_room_for_a_prompt(monkeypatch):
    from u2a import answers as module

    monkeypatch.setattr(module, "NEW_TOKENS", 10**6)
    assert 0 <= greedy_answers(tiny_problem("gpt2")).repetition.mean() <= 1


def test_a_rise_is_the_mean_of_paired_differences_where_noise_does_not_explain_it():
    """Of 16 answers each one that begins to circle, at 0.9, adds 0.056. 1.96 standard errors of three such
    are 0.178, more than their mean of 0.169; of four 0.197, less than their mean of 0.225."""
    before = np.zeros(16)

    def circling(count):
        return np.where(np.arange(16) < count, 0.9, 0.0)

    assert rise_beyond_noise(before, circling(3)) == 0.0
    assert rise_beyond_noise(before, circling(4)) == pytest.approx(0.225)
    assert rise_beyond_noise(circling(4), before) == 0.0  # it fell
    assert rise_beyond_noise(circling(4), circling(4)) == 0.0
    assert rise_beyond_noise(np.array([0.1]), np.array([0.3])) == pytest.approx(0.2)


def run(monkeypatch, shares, limit):
    found = iter(AnswerShares(np.full(4, share), np.zeros(4)) for share in shares)
    for module in (outer_loop, measuring):  # at the start; in inner runs
        monkeypatch.setattr(module, "greedy_answers", lambda *_: next(found))
    outer = OuterOptions(
        outer_steps=1,
        measurements=2,
        halvings=0,
        kl_budget=0.0,
        max_nll_rise=1e9,
        max_repetition_rise=limit,
    )
    unlearn = UnlearnOptions(learning_rate=1e-3, max_steps=2, batch_size=2)
    return align(tiny_problem(random_b=False), unlearn=unlearn, outer=outer)


def test_it_ends_an_inner_run_and_the_step_before_is_kept(monkeypatch, logged):
    result = run(monkeypatch, [0.1, 0.2, 0.9], 0.3)
    assert [p.admissible for p in result.points] == [True, True, False]
    assert [p.figures["repetition"] for p in result.points] == pytest.approx([0.1, 0.2, 0.9])
    assert not result.points[-1].best
    assert "repetition in greedy answers rose by 0.8, over --max-repetition-rise 0.3" in logged.text


def test_it_is_the_rise_that_counts(monkeypatch):
    result = run(monkeypatch, [0.6, 0.7, 0.5], 0.3)
    assert all(p.admissible for p in result.points)


def test_it_is_on_unless_switched_off():
    assert OuterOptions().guards_repetition
    assert not OuterOptions(max_repetition_rise=1.0).guards_repetition


def test_off_it_generates_nothing(monkeypatch):
    result = run(monkeypatch, [], 1.0)
    assert all("repetition" not in p.figures for p in result.points)
