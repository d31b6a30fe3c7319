"""Controls: each is what it says, with the sign that was fixed for it."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from problems import BAD, PAIRS, answers, pairs, tiny_problem
from u2a.impact.context import ScoringContext, inner_product, norm
from u2a.impact.gradient import objective_gradient, weighted_logprob_gradient
from u2a.verification.bm25 import bm25
from u2a.verification.controls import control_scores, embedding_similarity, likeness


@pytest.fixture(scope="module")
def scored():
    problem = tiny_problem("llama")
    at = problem.measure(negatives=True)
    return problem, at, control_scores(problem, at, pairs(), seed=3)


def test_there_are_all_and_each_is_one_number_a_negative(scored):
    found = scored[2].scores
    assert list(found) == ["random", "length", "loss", "mean_logprob", "gradient_norm", "cosine", "bm25"]
    for values in found.values():
        assert values.shape == (6,)
        assert np.isfinite(values).all()
        assert values.dtype == np.float64


def test_length_loss_and_likelihood(scored):
    problem, at, found = scored
    lengths = np.array(problem.negative_texts["n_tokens"])
    s = at.s_negatives.numpy()
    np.testing.assert_array_equal(found.scores["length"], lengths)
    np.testing.assert_allclose(found.scores["mean_logprob"], s / lengths)
    by_hand = 20 * np.log1p(np.exp(0.1 * (s - problem.reference.numpy())))  # npo, β = 0.1
    np.testing.assert_allclose(found.scores["loss"], by_hand)


def test_loss_at_the_reference_is_one_value():
    problem = tiny_problem("llama", random_b=False, dtype=torch.float32)
    found = control_scores(problem, problem.measure(negatives=True), pairs())
    assert np.ptp(found.scores["loss"]) == 0


def test_gradient_norm_and_cosine_are_those_of_each_gradient(scored):
    """Example by example: ∇ℓ_i = (dℓ/ds)·∇s_i, and the cosine is that of −∇ℓ_i and ∇J."""
    problem, at, found = scored
    context = ScoringContext.of(problem)
    goal = objective_gradient(context, problem.objective, at.s_objective)
    slope = problem.loss.derivative(at.s_negatives, problem.reference, problem.lengths)
    for i in range(6):
        one = torch.zeros(6, dtype=torch.float64)
        one[i] = 1.0
        gradient = weighted_logprob_gradient(context, problem.negative_texts, one)
        size = norm(gradient)
        assert found.scores["gradient_norm"][i] == pytest.approx(float(slope[i]) * size, rel=1e-4)
        cosine = -inner_product(gradient, goal) / (size * norm(goal))
        assert found.scores["cosine"][i] == pytest.approx(cosine, rel=1e-4, abs=1e-6)


def test_random_is_seeded(scored):
    problem, at, found = scored
    again = control_scores(problem, at, pairs(), seed=3).scores["random"]
    np.testing.assert_array_equal(found.scores["random"], again)
    assert (control_scores(problem, at, pairs(), seed=4).scores["random"] != again).any()


def test_likeness_to_rejected_counts_for_and_to_chosen_against():
    negatives = answers([("", PAIRS[0][2]), ("", PAIRS[0][1]), ("", "zzz")])
    found = likeness(negatives, pairs(), bm25)
    assert found[0] > 0 > found[1]
    assert found[2] == 0


def test_likeness_with_preferred_texts_alone_counts_against():
    negatives = answers([("", PAIRS[0][1]), ("", "zzz")])
    found = likeness(negatives, answers([("", PAIRS[0][1])]), bm25)
    assert found[0] < 0 == found[1]


def test_bm25_is_the_mean_over_pairs(scored):
    responses = [response for _, response in BAD]
    rejected = [pair[2] for pair in PAIRS]
    chosen = [pair[1] for pair in PAIRS]
    scores = bm25(responses, [*chosen, *rejected])
    np.testing.assert_allclose(scored[2].scores["bm25"], scores[:, 4:].mean(1) - scores[:, :4].mean(1))


class FakeEmbedding:
    """Texts as counts of `a` and `b`."""

    def __init__(self, name, **_):
        if name == "nowhere":
            raise OSError("no such model\nmore")

    def encode(self, texts, *, normalize_embeddings, show_progress_bar):
        assert normalize_embeddings
        assert not show_progress_bar
        counts = np.array([[text.count("a"), text.count("b")] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_embedding_similarity_is_a_cosine(monkeypatch):
    fake = SimpleNamespace(SentenceTransformer=FakeEmbedding)
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake)
    similarity, why = embedding_similarity("some/model")
    assert why == ""
    np.testing.assert_allclose(similarity(["aa", "ab"], ["a", "b"]), [[1, 0], [0.5**0.5] * 2], atol=1e-6)
    rows = Dataset.from_list([{"chosen": "b", "rejected": "a"}])
    np.testing.assert_allclose(likeness(answers([("", "a"), ("", "b")]), rows, similarity), [1, -1])
    assert embedding_similarity("nowhere") == (None, "--embedding-model nowhere does not load: no such model")


def test_embedding_is_left_out_with_a_reason_where_it_cannot_be(monkeypatch, scored):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    similarity, why = embedding_similarity("some/model")
    assert similarity is None
    assert "not installed" in why
    assert "u2a[embeddings]" in why
    assert "embedding" in scored[2].left_out
