"""Repetition as a guard: what it measures, what it ends, and that it costs nothing unless asked for."""

import pytest

from problems import tiny_problem
from u2a import measuring, outer_loop
from u2a.config import OuterOptions, UnlearnOptions
from u2a.ngrams import repetition
from u2a.outer_loop import align
from u2a.repetition import greedy_repetition


def test_share_of_repeated_n_grams():
    """1 2 3 4 1 2 3 4 1 has six 4-grams, four of them different: 1 − 4/6."""
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4, 1]) == pytest.approx(1 / 3)
    assert repetition([1, 2, 3]) == 0.0


def test_it_is_measured_on_greedy_answers_to_the_validation_prompts(monkeypatch):
    from u2a import repetition as module

    tiny, asked = tiny_problem(), []

    def answer(_policy, prompts, **how):
        asked.append((prompts, how))
        return [[5, 5, 5, 5, 5, 5], *([[1, 2, 3, 4, 5]] * (len(prompts) - 1))]

    monkeypatch.setattr(module, "continuations", answer)
    assert greedy_repetition(tiny) == pytest.approx((2 / 3) / 4)  # of four prompts, asked once each
    ((prompts, how),) = asked
    texts = tiny.objective.texts
    assert prompts == [texts[i]["input_ids"][: texts[i]["response_start"]] for i in range(4)]
    assert how["do_sample"] is False


def test_a_real_model_gives_the_same_share_twice():
    tiny = tiny_problem()
    found = greedy_repetition(tiny)
    assert 0 <= found <= 1
    assert greedy_repetition(tiny) == found


def test_a_short_table_of_positions_leaves_room_for_a_prompt(monkeypatch):
    from u2a import repetition as module

    monkeypatch.setattr(module, "NEW_TOKENS", 10**6)
    assert 0 <= greedy_repetition(tiny_problem("gpt2")) <= 1


def run(monkeypatch, shares, limit):
    found = iter(shares)
    for module in (outer_loop, measuring):  # at the start; in inner runs
        monkeypatch.setattr(module, "greedy_repetition", lambda *_: next(found))
    outer = OuterOptions(
        outer_steps=1, measurements=2, halvings=0, kl_budget=0.0, max_nll_rise=1e9, max_repetition=limit
    )
    unlearn = UnlearnOptions(learning_rate=1e-3, max_steps=2, batch_size=2)
    return align(tiny_problem(random_b=False), unlearn=unlearn, outer=outer)


def test_it_ends_an_inner_run_and_the_step_before_is_kept(monkeypatch, logged):
    result = run(monkeypatch, [0.1, 0.2, 0.9], 0.3)
    assert [p.admissible for p in result.points] == [True, True, False]
    assert [p.figures["repetition"] for p in result.points] == [0.1, 0.2, 0.9]
    assert not result.points[-1].best
    assert "0.9 of 4-grams repeat, over --max-repetition 0.3" in logged.text


def test_an_original_that_repeats_more_sets_the_limit(monkeypatch):
    result = run(monkeypatch, [0.8, 0.8, 0.7], 0.3)
    assert all(p.admissible for p in result.points)


def test_off_it_generates_nothing(monkeypatch):
    result = run(monkeypatch, [], 0.0)
    assert all("repetition" not in p.figures for p in result.points)
