"""The reward objective against expectations over every response there is, and numbers derived by hand."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

import tiny_language as language
from cases import jsonl, tiny_policy
from problems import GOOD, answers, tiny_problem
from u2a.alignment.outer_loop import align
from u2a.config import OuterOptions, UnlearnOptions, WeightOptions
from u2a.data.load import load_prompts
from u2a.data.render import Renderer
from u2a.impact.curvature import Identity
from u2a.impact.gradient import objective_coefficients, objective_gradient
from u2a.impact.table import score_impact
from u2a.objectives import DrawnReward, Reward
from u2a.passes.dataset import silent
from u2a.passes.generation import sampled
from u2a.preparation import prepare
from u2a.trajectory.first_order import first_order_impact
from u2a.trajectory.metagradient import metagradient_impact
from u2a.types import GuardStop, UserError

MANY = 800
"""Draws of one prompt: enough for standard errors of a few per cent."""


def objective(policy, rows, scorer=language.scorer, **options):
    renderer = Renderer(policy.tokenizer, template="none", max_length=12)
    return Reward.of_rows(rows, renderer, scorer, max_new_tokens=language.LONGEST, **options)


def problem(policy, rows, *, negatives=("a", "b", "c"), scorer=language.scorer, **options):
    """Everything on the tiny language; the negatives answer the prompt of the validation rows."""
    bad = Dataset.from_list(
        [
            {"row": i, "id": str(i), "prompt": rows[0]["prompt"], "response": text, "weight": 1.0}
            for i, text in enumerate(negatives)
        ]
    )
    good = answers([("p", "d d"), ("p", "c")])
    given = {"retain": good, "loss": "ga", "template": "none", "max_length": 12, "max_tokens": 4096}
    more = {"max_new_tokens": language.LONGEST, **options.pop("objective_options", {})}
    return prepare(
        policy, negatives=bad, preferences=rows, objective="reward", objective_options=more, scorer=scorer,
        **{**given, **options},
    )  # fmt: skip


def drawn(policy, **options):
    made = problem(policy, language.prompts(MANY), objective_options=options)
    found, s = made.objective_here()
    return made, found, s


# -- by hand ------------------------------------------------------------------------------------------------


def by_hand(**changed):
    """Two prompts, K = 2, β = 0.5. R of the first: 1 − 0.5·0.5 = 0.75 and 3 + 0.5·1 = 3.5; of the second: 2
    and 2. What each is compared with is the other one."""
    given = {
        "texts": None,
        "s": torch.tensor([-1.0, -2.0, -3.0, -4.0], dtype=torch.float64),
        "reference": torch.tensor([-1.5, -1.0, -3.0, -4.0], dtype=torch.float64),
        "rewards": torch.tensor([1.0, 3.0, 2.0, 2.0], dtype=torch.float64),
        "samples": 2,
        "beta": 0.5,
    }
    return DrawnReward(**{**given, **changed})


def test_the_value_at_the_draw_is_the_mean_reward_less_kl():
    """(0.75 + 3.5)/2 and 2."""
    found = by_hand()
    assert found.terms(found.s).tolist() == pytest.approx([2.125, 2.0])


def test_the_slope_at_the_draw_is_the_leave_one_out_advantage():
    """(0.75 − 3.5)/2 and its opposite, over the two prompts; equal rewards pull nowhere."""
    found = by_hand()
    slopes = objective_coefficients(found, found.s)
    assert slopes.tolist() == pytest.approx([-1.375 / 2, 1.375 / 2, 0.0, 0.0])


def test_the_baseline_of_three_is_the_mean_of_the_two_others():
    """Rewards 0, 3, 6 without KL: advantages 0 − 4.5, 3 − 3, 6 − 1.5."""
    s = torch.zeros(3, dtype=torch.float64)
    found = DrawnReward(None, s, s, torch.tensor([0.0, 3.0, 6.0]).double(), 3, 0.0)
    assert objective_coefficients(found, s).tolist() == pytest.approx([-1.5, 0.0, 1.5])
    assert found.terms(s).tolist() == pytest.approx([3.0])


def test_away_from_the_draw_responses_are_weighted():
    """The first response is twice as likely: w = 2, R = 1 − 0.5·(0.5 + log 2) = 0.403426, so
    2·(0.403426 − 3.5) + 0.5·(2 − 1) + 3.5 = −2.193147; the second as before: 1·(3.5 − 0.75) + 0.75 = 3.5."""
    found = by_hand()
    moved = found.s + torch.tensor([math.log(2), 0.0, 0.0, 0.0])
    assert found.terms(moved)[0].item() == pytest.approx((-2.1931472 + 3.5) / 2, abs=1e-6)


def test_the_standard_error_is_that_of_sampling_alone():
    """Variance of 0.75 and 3.5: 3.78125; a half of it, no other prompt's: √1.890625/2 = 0.6875."""
    assert by_hand().standard_error == pytest.approx(0.6875)


@pytest.mark.parametrize("samples, beta", [(2, 0.0), (2, 0.7), (3, 0.7)])
def test_over_every_draw_there_is_value_and_gradient_are_exact(samples, beta):
    """A language of four responses with logits φ: all 4^K draws of K, each by its chance, add up to
    J = Σ_y π(y)·r(y) − β·Σ_y π(y)·log(π(y)/π_ref(y)) and ∇J, without an error of sampling. A KL of the other
    sign, a baseline with the response itself in it, or one that is added to the slope would all be seen."""
    logits = torch.tensor([0.3, -1.0, 0.9, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.5, -0.7, 1.2], dtype=torch.float64).log_softmax(0)
    rewards = torch.tensor([1.0, -2.0, 0.5, 5.0], dtype=torch.float64)
    s = logits.log_softmax(0)
    exact = (s.exp() * (rewards - beta * (s - reference))).sum()
    value, gradient = 0.0, torch.zeros(4, dtype=torch.float64)
    for draw in itertools.product(range(4), repeat=samples):
        y = torch.tensor(draw)
        found = DrawnReward(None, s[y].detach(), reference[y], rewards[y], samples, beta)
        chance = s[y].sum().exp().item()
        term = found.terms(s[y]).sum()
        value += chance * term.item()
        gradient += chance * torch.autograd.grad(term, logits, retain_graph=True)[0]
    assert value == pytest.approx(exact.item(), abs=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(exact, logits)[0], atol=1e-12, rtol=0)


# -- against every response there is ------------------------------------------------------------------------


def test_log_probs_of_responses_are_the_probabilities_they_are_drawn_with():
    """Over every response they add up to 1, the ending token counted; and samples are that frequent."""
    policy = language.policy()
    made, found, s = drawn(policy)
    with torch.no_grad():
        chances = language.all_logprobs(policy, made.objective.prompts[0]).exp()
    assert chances.sum().item() == pytest.approx(1.0, abs=1e-9)
    assert chances[0] > 0.02  # at once at its end
    place = {tuple(response): i for i, response in enumerate(language.RESPONSES)}
    rows = zip(found.texts["input_ids"], found.texts["response_start"], strict=True)
    index = np.array([place[tuple(ids[start:])] for ids, start in rows])
    np.testing.assert_allclose(s.numpy(), chances.log()[index].numpy(), atol=1e-6)
    assert list(found.texts["n_tokens"]) == [len(language.RESPONSES[i]) for i in index]
    count = len(index)
    frequent = np.bincount(index, minlength=len(chances)) / count
    error = np.sqrt(chances.numpy() * (1 - chances.numpy()) / count)
    assert (np.abs(frequent - chances.numpy()) < 4.5 * error).all()


@pytest.mark.parametrize("samples, beta", [(2, 0.0), (4, 0.7)])
def test_value_and_gradient_are_unbiased(samples, beta):
    """Each of many draws of one prompt is an estimate; their mean is the exact one within standard errors
    that are small beside it, in every element of φ."""
    policy = language.policy()
    made, found, s = drawn(policy, samples=samples, beta=beta)
    exact = language.exact_objective(made)
    terms = found.terms(s.double())
    assert abs(terms.mean() - exact) < 4 * terms.std() / math.sqrt(MANY)

    leaves = list(policy.trainable().values())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(exact, leaves)])
    every = language.all_logprobs(policy, made.objective.prompts[0])
    slopes = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(one, leaves, retain_graph=True)])
            for one in every
        ]
    )
    place = {tuple(response): i for i, response in enumerate(language.RESPONSES)}
    rows = zip(found.texts["input_ids"], found.texts["response_start"], strict=True)
    index = [place[tuple(ids[start:])] for ids, start in rows]
    coefficients = MANY * objective_coefficients(found, s.double())
    draws = (coefficients[:, None] * slopes[index]).view(MANY, samples, -1).sum(1)
    error = draws.std(0) / math.sqrt(MANY)
    assert ((draws.mean(0) - gradient).abs() <= 4.5 * error + 1e-9).all()
    assert error.norm() < 0.3 * gradient.norm()


def test_the_gradient_is_that_of_the_responses_one_by_one():
    """`objective_gradient` of a draw: Σ_i (dJ/ds_i)·∇s_i by autograd."""
    from u2a.impact.context import ScoringContext
    from u2a.logprobs import response_logprobs

    policy = language.policy()
    made = problem(policy, language.prompts(5))
    found, s = made.objective_here()
    context = ScoringContext.of(made)
    result = objective_gradient(context, found, s)
    total = 0.0
    for batch in context.batches(found.texts):
        own = response_logprobs(policy.model, batch)
        total = total + (objective_coefficients(found, s)[batch.index].to(own) * own).sum()
    leaves = policy.trainable()
    expected = torch.autograd.grad(total, list(leaves.values()))
    for name, value in zip(leaves, expected, strict=True):
        torch.testing.assert_close(result[name], value, atol=1e-9, rtol=1e-6)


def test_importance_weights_measure_another_point_from_the_same_draw():
    policy = language.policy()
    made, found, _ = drawn(policy, beta=0.7)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.mul_(0.5)
        exact = language.exact_objective(made)
    terms = found.terms(made.logprobs(found.texts).double())
    error = terms.std() / math.sqrt(MANY)
    assert abs(terms.mean() - exact) < 4 * error
    before = found.terms(found.s.double()).mean()
    assert abs(before - exact) > 4 * error  # it is another point


# -- what is drawn ------------------------------------------------------------------------------------------


def test_the_scorer_reads_prompts_and_answers_without_their_end():
    """An answer that ended at once is an empty one."""
    seen = []

    def scorer(prompts, texts):
        seen.extend(zip([p[-1]["content"] for p in prompts], texts, strict=True))
        return np.zeros(len(texts))

    rows = Dataset.from_list(
        [{"row": i, "prompt": [{"role": "user", "content": text}]} for i, text in enumerate("qp" * 40)]
    )
    policy = language.policy()
    made = problem(policy, rows, scorer=scorer)
    found, _ = made.objective_here()
    assert [prompt for prompt, _ in seen] == [text for text in "qp" * 40 for _ in range(4)]
    assert "" in {text for _, text in seen}
    for (prompt, text), ids in zip(seen, found.texts["input_ids"], strict=True):
        words = [language.WORDS[i] for i in ids]
        assert words[0] == prompt
        assert text.split() == [word for word in words[1:] if not word.startswith("<")]
    assert list(found.texts["row"]) == [i for i in range(80) for _ in range(4)]


def test_prompts_of_unequal_length_are_cut_to_leave_room():
    policy = language.policy()
    rows = Dataset.from_list(
        [
            {"row": 0, "prompt": [{"role": "user", "content": "p " * 20 + "q"}]},
            {**language.prompts(1)[0], "row": 1},
        ]
    )
    made = objective(policy, rows)
    assert [len(ids) for ids in made.prompts] == [12 - language.LONGEST, 1]
    texts = made.sample(policy, 30, silent)
    assert list(texts["response_start"]) == [10] * 4 + [1] * 4
    assert max(map(len, texts["input_ids"])) <= 12


def test_draws_repeat_with_the_seed_and_leave_the_global_random_state_alone():
    policy = language.policy()
    state = torch.get_rng_state()
    first, again, other = (
        list(problem(policy, language.prompts(20), seed=seed).objective_here()[0].texts["input_ids"])
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_small_step_leaves_most_responses_as_they_are():
    """Common random numbers: equal seeds pick equal tokens where the models agree. Two independent draws
    agree with the probability Σ p²."""
    policy = language.policy()
    made = problem(policy, language.prompts(200))
    before = made.objective_here()[0].texts["input_ids"]
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(1.01)
        chances = language.all_logprobs(policy, made.objective.prompts[0]).exp()
    after = made.objective_here()[0].texts["input_ids"]
    same = np.mean([a == b for a, b in zip(before, after, strict=True)])
    assert 0.9 < same < 1.0
    assert chances.square().sum() < 0.5


def test_settings_that_came_with_the_model_do_not_change_what_is_drawn():
    """Top-k 1 would give the same response every time, a penalty another distribution."""
    policy = language.policy()
    prompts = [[2]] * 40
    plain = sampled(policy, prompts, max_new_tokens=2, seed=3)
    own = policy.model.get_base_model().generation_config
    own.top_k, own.repetition_penalty, own.do_sample = 1, 5.0, True
    assert sampled(policy, prompts, max_new_tokens=2, seed=3) == plain
    assert policy.model.get_base_model().generation_config is own
    assert len({tuple(response) for response in plain}) > 5


def test_every_token_can_be_drawn():
    """Not only the 50 likeliest, as transformers would have it where nothing is said."""
    policy = tiny_policy("llama")
    drawn = torch.tensor(sampled(policy, [[5, 6, 7]] * 300, max_new_tokens=1, seed=0))[:, 0]
    with torch.no_grad():
        logits = policy.model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    ranks = logits.argsort(descending=True).argsort()
    assert ranks[drawn].max() >= 50


def test_a_model_that_gives_nan_is_a_guard_and_not_an_error_of_torch():
    policy = language.policy()
    made = problem(policy, language.prompts(2))
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.fill_(math.nan)
    with pytest.raises(GuardStop, match="not a number where responses are drawn"):
        made.measure()
    assert policy.model.get_base_model().generation_config.eos_token_id == language.EOS


@pytest.mark.parametrize(
    "scores, error, words",
    [
        (lambda n: [0.0] * 5 + [math.nan] + [0.0] * (n - 6), GuardStop, "row 1 is nan (1 of 12"),
        (lambda n: [0.0] * (n - 1) + [math.inf], GuardStop, "row 2 is inf"),
        (lambda n: [0.0] * (n - 1), UserError, "shape (11,) for 12 answers"),
        (lambda n: ["good"] * n, UserError, "must give numbers"),
    ],
)
def test_scores_that_are_no_finite_numbers_stop_the_run(scores, error, words):
    made = problem(language.policy(), language.prompts(3), scorer=lambda _, texts: scores(len(texts)))
    with pytest.raises(error) as stopped:
        made.objective_here()
    assert words in str(stopped.value)


def test_a_bad_score_names_the_file_and_row_of_the_prompt(tmp_path):
    rows = load_prompts(jsonl(tmp_path / "ask.jsonl", [{"prompt": "q"}, {"prompt": "p"}]))
    made = problem(language.policy(), rows, scorer=lambda *_: [0.0] * 4 + [math.nan] * 4)
    with pytest.raises(GuardStop, match=r"ask\.jsonl, row 2 is nan"):
        made.objective_here()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"samples": 1}, "samples=1"),
        ({"beta": -0.1}, "beta=-0.1"),
        ({"beta": math.nan}, "beta=nan"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 11}, "--objective-max-new-tokens 11 leaves no room"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        problem(language.policy(), language.prompts(2), objective_options=options)


def test_kl_needs_the_original_model():
    full = language.policy(lora_rank=0)
    with pytest.raises(UserError, match="a KL term needs a frozen copy"):
        problem(full, language.prompts(2)).measure()
    assert problem(full, language.prompts(2), objective_options={"beta": 0.0}).measure().kl is None
    kept = problem(full, language.prompts(2), keep_frozen_copy=True)
    found, s = kept.objective_here()
    torch.testing.assert_close(found.reference, s)
    with torch.no_grad():
        full.model.lm_head.weight.mul_(1.5)
    found, s = kept.objective_here()
    assert (found.reference - s).abs().max() > 0.01


# -- impact, align, utility ---------------------------------------------------------------------------------


def of_hating_a(beta=0.0):
    """Every `a` in an answer costs 1; negatives `a a` and `d d`."""
    return problem(
        language.policy(), language.prompts(150), negatives=("a a", "d d"), objective_options={"beta": beta},
        scorer=lambda _, texts: [-float(text.count("a")) for text in texts],
    )  # fmt: skip


def exactly(made):
    """The same problem with J as a sum over every response."""
    return replace(made, objective=language.exact(made, lambda text: -float(text.count("a"))))


def test_unlearning_what_the_reward_hates_raises_it():
    """Positive impact = unlearning it raises J; and impacts are those of the exact J within their errors."""
    made = of_hating_a()
    table = score_impact(made, curvature=Identity())
    assert table.impact[0] > 4 * table.impact_se[0]
    assert table.impact[0] > table.impact[1]
    expected = score_impact(exactly(made), curvature=Identity()).impact
    assert (np.abs(table.impact - expected) < 4 * table.impact_se).all()


@pytest.mark.parametrize("estimate", [first_order_impact, metagradient_impact])
def test_estimators_along_the_run_draw_where_they_take_the_slope(estimate, monkeypatch):
    """So they find what the exact J gives; responses of φ₀ would be those of another model by then."""
    made, points, real = of_hating_a(beta=0.3), [], Reward.draw

    def noted(self, policy, *rest):
        points.append(next(p.detach().clone() for n, p in policy.trainable().items() if "lora_B" in n))
        return real(self, policy, *rest)

    monkeypatch.setattr(Reward, "draw", noted)
    options = UnlearnOptions(learning_rate=3e-2, max_steps=2, batch_size=2)
    found, expected = (estimate(each, options).impact for each in (made, exactly(made)))
    assert np.linalg.norm(found - expected) < 0.2 * np.linalg.norm(expected)
    assert len(points) == (2 if estimate is first_order_impact else 1)
    start = next(p for n, p in made.policy.trainable().items() if "lora_B" in n)
    assert not torch.equal(points[-1], start)


def test_impact_is_taken_on_the_responses_of_the_measurement():
    """Scoring at a point that was measured draws nothing again, and is what scoring from scratch gives."""
    made = problem(language.policy(), language.prompts(20))
    at = made.measure(negatives=True)
    fresh = score_impact(made, curvature=Identity()).impact
    calls = []
    object.__setattr__(made, "objective_here", lambda *_: calls.append(1))
    np.testing.assert_array_equal(score_impact(made, curvature=Identity(), at=at).impact, fresh)
    assert not calls
    assert at.figures["objective_se"] == pytest.approx(at.drawn.standard_error)


def test_align_raises_the_reward_that_was_measured():
    """The best point is measured with responses of its own: measuring it again gives the same figure, and
    the exact J rose as well."""
    policy = language.policy()
    made = problem(policy, language.prompts(40), negatives=("a a", "b b", "a b"), loss="npo")
    before = language.exact_objective(made).item()
    free = OuterOptions(kl_budget=0.0, max_nll_rise=100.0, measurements=2, outer_steps=2, min_gain=-100.0)
    strong = UnlearnOptions(learning_rate=2e-2, max_steps=4, batch_size=2)
    result = align(
        made, unlearn=strong, outer=free, weights=WeightOptions(select="100%"), curvature=Identity()
    )
    assert result.improved
    assert made.measure().objective == pytest.approx(result.best.objective, abs=1e-9)
    assert list(result.best.drawn.texts["input_ids"]) != list(result.start.drawn.texts["input_ids"])
    assert language.exact_objective(made).item() > before
    assert {"objective_se"} <= set(result.points[-1].figures)


def test_without_retain_rows_u_is_on_what_the_original_model_answers():
    policy = language.policy()
    made = problem(policy, language.prompts(10), retain=None)
    with policy.reference():
        expected = made.objective.sample(policy, 4096, silent)
    assert list(made.utility.texts["input_ids"]) == list(expected["input_ids"])


@pytest.mark.parametrize("family", ["qwen", "gemma", "mistral"])
def test_it_runs_on_real_templates_and_other_families(family):
    """Long enough for ragged responses; log-probs of what was drawn are finite and its value is the mean."""
    made = tiny_problem(
        family, preferences=answers(GOOD), objective="reward", objective_options={"max_new_tokens": 6},
        scorer=lambda _, texts: [float(len(text)) for text in texts], dtype=torch.float32,
    )  # fmt: skip
    measured = made.measure()
    found = measured.drawn
    penalty = 0.1 * (found.s.double() - found.reference.double())
    assert measured.objective == pytest.approx((found.rewards - penalty).mean().item(), rel=1e-5)
