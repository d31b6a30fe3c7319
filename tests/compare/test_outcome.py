"""Margins at equal cost, intervals and verdicts by hand."""

import numpy as np
import pytest

from u2a.compare.outcome import at_rise, difference, interval, margins_of, outcome, verdict


def test_margins():
    np.testing.assert_allclose(margins_of([-1.0, -2.0, -3.0, -1.5]), [2.0, -0.5])


def test_between_looks_the_margin_is_on_the_straight_line():
    run = [(0.01, np.array([1.0, 0.0])), (0.03, np.array([2.0, 4.0]))]
    np.testing.assert_allclose(at_rise(run, 0.02), [1.5, 2.0])
    np.testing.assert_allclose(at_rise(run, 0.005), [0.5, 0.0])  # from 0 at the original
    np.testing.assert_allclose(at_rise(run, 0.01), [1.0, 0.0])
    np.testing.assert_allclose(at_rise(run, 0.03), [2.0, 4.0])


def test_what_never_costs_that_much_is_taken_at_its_end():
    run = [(0.01, np.array([1.0])), (-0.02, np.array([3.0]))]
    np.testing.assert_allclose(at_rise(run, 0.02), [3.0])


def test_where_it_rises_first_counts():
    run = [(0.04, np.array([2.0])), (0.0, np.array([9.0])), (0.04, np.array([1.0]))]
    np.testing.assert_allclose(at_rise(run, 0.02), [1.0])


def cell(points, rate=1e-4, seconds=10.0, **more):
    start = {"objective": -0.7, "utility": -2.0}
    made = [
        {"step": i, "seconds": float(i), "objective": j, "utility": u, "kl": kl, "held_out": s}
        for i, (j, u, kl, s) in enumerate(points)
    ]
    tokens = {"forward": 100, "trained": 50}
    return {"rate": rate, "start": start, "points": made, "seconds": seconds, "tokens": tokens, **more}


ORIGINAL = cell([(-0.7, -2.0, 0.0, [-1.0, -1.0, -2.0, -0.5])])  # margins 1, -0.5


def test_an_outcome_is_over_its_seeds():
    one = cell([(-0.6, -2.01, 0.1, [-1.0, -1.0, -3.0, -0.5]), (-0.5, -2.03, 0.3, [-1.0, -1.0, -5.0, -1.5])])
    two = cell([(-0.6, -2.02, 0.1, [-1.0, -1.0, -2.0, -0.5]), (-0.4, -2.01, None, [-1.0, -1.0, -4.0, -0.5])])
    found = outcome("x", "u2a", [one, two], ORIGINAL, 0.02)
    np.testing.assert_allclose(found.margins, [[3.0, 1.0], [2.0, 0.0]])
    np.testing.assert_allclose(found.at_cost, [[2.0, 0.5], [0.0, 0.0]])
    np.testing.assert_allclose(found.accuracy, [[1.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(found.rises, [0.03, 0.01])
    np.testing.assert_allclose(found.objective, [0.2, 0.3])
    assert np.isnan(found.kl[1])
    assert found.kl[0] == 0.3
    assert found.reached
    assert (found.rate, found.seeds, found.seconds) == (1e-4, 2, 10.0)
    assert (found.forward_tokens, found.trained_tokens) == (100, 50)
    np.testing.assert_allclose(found.curve, [(0.015, 0.25, 0.0), (0.02, 1.5, 1.0)])


def test_a_curve_ends_where_the_runs_end_however_often_they_were_looked_at():
    first, second, end = ((-0.6, -2.0 - rise, 0.1, [-1.0, -1.0, -2.0, -0.5]) for rise in (0.01, 0.02, 0.03))
    found = outcome("x", "u2a", [cell([first, second, end]), cell([first, end])], ORIGINAL, 0.02)
    np.testing.assert_allclose([rise for rise, _, _ in found.curve], [0.01, 0.03])


def test_who_stays_cheap_is_marked():
    found = outcome("x", "u2a", [cell([(-0.6, -2.01, 0.1, [0.0, 0.0, -1.0, -1.0])])], ORIGINAL, 0.02)
    assert not found.reached


def test_one_slow_run_does_not_spoil_the_time():
    """The median of 10, 12 and 600 s, and of 1, 1 and 50 s at the look; the mean of tokens as ever."""
    s = [-0.6, -2.01, 0.1, [-1.0, -1.0, -3.0, -0.5]]
    runs = [cell([s], seconds=10.0), cell([s], seconds=600.0), cell([s], seconds=12.0)]
    for run, at in zip(runs, (1.0, 50.0, 1.0), strict=True):
        run["points"][0]["seconds"] = at
    runs[0]["tokens"] = {"forward": 400, "trained": 50}
    found = outcome("x", "u2a", runs, ORIGINAL, 0.02)
    assert found.seconds == 12.0
    assert found.curve[0][2] == 1.0
    assert found.forward_tokens == 200


def test_intervals_hold_pairs_and_seeds():
    rng = np.random.default_rng(0)
    pairs = interval(rng.normal(1.0, 1.0, (1, 400)))
    assert (pairs.high - pairs.low) / 2 == pytest.approx(1.96 / 20, rel=0.15)
    seeds = interval(np.repeat(np.array([[0.0], [1.0]]), 50, axis=1))
    assert (seeds.low, seeds.value, seeds.high) == (0.0, 0.5, 1.0)


def test_differences_are_paired():
    base = np.random.default_rng(0).normal(0.0, 10.0, (2, 60))
    found = difference(base + 0.1, base)
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)
    assert (found.sign, difference(base, base + 0.1).sign, difference(base, base).sign) == (1, -1, 0)


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_pair_has_no_interval(seeds):
    """Drawn anew it is always itself: its interval would be a point, and every difference sure."""
    one, other = np.full((seeds, 1), 2.0), np.full((seeds, 1), 1.0)
    for found in (interval(one), difference(one, other)):
        assert np.isnan([found.low, found.high]).all()
        assert found.sign == 0
    assert difference(one, other).value == 1.0


def made(name, margin, reached=True, seeds=2, kind="u2a"):
    rise = 0.05 if reached else 0.001
    s = [-1.0 + margin, -1.0 + margin, -2.0, -0.5]
    return outcome(
        name, kind, [cell([(-0.6, -2.0 - rise, 0.1, s)], repetition_rise=0.0)] * seeds, ORIGINAL, 0.02
    )


def test_the_verdict_says_what_the_intervals_support():
    judged = made("mine", 1.0)
    others = [made("less", 0.5), made("same", 1.0), made("more", 2.0, reached=False)]
    lines = verdict(judged, others, 0.02)
    assert lines == [
        "mine, held-out margin at a rise of the retain NLL of 0.02 nats per token:",
        "better than less",
        "not significantly different from same",
        "worse than more",
        "taken at their end, since they never cost that much: more",
    ]


def test_the_verdict_says_of_whom_there_is_one_seed():
    """The original model has no chance in it, so its one run hides none."""
    others = [made("twice", 0.5), made("once", 0.5, seeds=1), made("original", 0.0, seeds=1, kind="original")]
    lines = verdict(made("mine", 1.0, seeds=1), others, 0.02)
    assert lines[1:] == [
        "better than twice, once, original",
        "of one seed, so that intervals are about pairs alone: mine, once",
    ]


def test_the_verdict_of_one_pair_tells_nothing_apart():
    original = cell([(-0.7, -2.0, 0.0, [-1.0, -2.0])])
    cells = {
        name: [cell([(-0.6, -2.05, 0.1, s)], repetition_rise=0.0)]
        for name, s in (("a", [0.0, -9.0]), ("b", [-1.0, -2.0]))
    }
    a, b = (outcome(name, "u2a", runs, original, 0.02) for name, runs in cells.items())
    assert verdict(a, [b], 0.02)[1:] == [
        "not significantly different from b",
        "one held-out pair has no interval: no difference can be called significant",
    ]


def test_answers_that_run_in_circles_are_in_the_verdict():
    """More than 0.1 beyond noise, in any seed; of runs of before it was measured that is said."""
    points = [(-0.6, -2.01, 0.1, [-1.0, -1.0, -3.0, -0.5])]
    given = {"original": [0.0], "circles": [0.0, 0.28], "fine": [0.08], "unknown": [None]}
    made = [
        outcome(
            name,
            "original" if name == "original" else "u2a",
            [cell(points, repetition=share, repetition_rise=share) for share in shares],
            ORIGINAL,
            0.02,
        )
        for name, shares in given.items()
    ]
    lines = verdict(made[2], [made[0], made[1], made[3]], 0.02)
    assert "made before answers were looked at for that: unknown" in lines
    assert "answers that run in circles at the end, which no margin shows: circles" in lines
    assert not any("run in circles" in line for line in verdict(made[2], [made[0], made[3]], 0.02))
    assert not any("run in circles" in line for line in verdict(made[2], [made[0], made[1]], 0.02, 0.3))
    assert made[1].repetition.tolist() == [0.0, 0.28]
    assert np.isnan(made[3].repetition).all()


def test_much_the_same_answer_to_every_prompt_is_in_the_verdict():
    """A rise of the overlap by more than 0.3 beyond noise, in any seed; runs of before do not say."""
    points = [(-0.6, -2.01, 0.1, [-1.0, -1.0, -3.0, -0.5])]
    given = {
        "one": [{"overlap": 0.9, "overlap_rise": 0.5}, {}],
        "own": [{"overlap": 0.6, "overlap_rise": 0.3}],
    }
    made = [
        outcome(name, "u2a", [cell(points, repetition_rise=0.0, **each) for each in cells], ORIGINAL, 0.02)
        for name, cells in given.items()
    ]
    assert "much the same answer to every prompt at the end: one" in verdict(made[1], made[:1], 0.02)
    assert not any("the same answer" in line for line in verdict(made[1], [], 0.02))
    assert made[0].overlap.tolist()[0] == 0.9
    assert np.isnan(made[0].overlap_rise[1])


def test_runs_of_a_version_between_have_repetition_and_no_rise():
    """Then it is the difference to the original's, if that is known."""
    points = [(-0.6, -2.01, 0.1, [-1.0, -1.0, -3.0, -0.5])]
    known = outcome("a", "u2a", [cell(points, repetition=0.3)], {**ORIGINAL, "repetition": 0.1}, 0.02)
    assert known.repetition_rise == pytest.approx([0.2])
    assert np.isnan(outcome("a", "u2a", [cell(points, repetition=0.3)], ORIGINAL, 0.02).repetition_rise)
