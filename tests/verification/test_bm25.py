"""BM25 against a score worked out by hand."""

import math

import numpy as np
import pytest

from u2a.verification.bm25 import bm25, words


def test_two_documents_by_hand():
    """Documents `a b` and `a a c`, query `a b`. D = 2, mean length 2.5.

    idf(a) = log(1 + 0.5/2.5) = log 1.2, idf(b) = log(1 + 1.5/1.5) = log 2; k1 = 1.2, b = 0.75:
    1.2·(0.25 + 0.75·2/2.5) = 1.02 and 1.2·(0.25 + 0.75·3/2.5) = 1.38.
    """
    found = bm25(["a b"], ["a b", "a a c"])
    first = (math.log(1.2) + math.log(2)) * 2.2 / 2.02
    second = math.log(1.2) * 2 * 2.2 / 3.38
    np.testing.assert_allclose(found, [[first, second]])


def test_a_word_of_every_document_still_counts_for_it():
    assert (bm25(["a"], ["a", "a", "a"]) > 0).all()


def test_case_order_and_repetition_in_a_query_do_not_matter():
    documents = ["The capital of France is Paris.", "Go away!"]
    same = bm25(["Paris, the capital", "capital THE paris paris"], documents)
    np.testing.assert_array_equal(same[0], same[1])
    assert same[0, 0] > 0
    assert same[0, 1] == 0


def test_nothing_in_common_or_nothing_at_all_is_0():
    np.testing.assert_array_equal(bm25(["xyz", ""], ["a b", ""]), np.zeros((2, 2)))


def test_a_rarer_word_counts_more():
    found = bm25(["common", "rare"], ["common rare", "common other", "common more"])
    assert found[1, 0] > found[0, 0]


@pytest.mark.parametrize("text, found", [("Don't go!", ["don", "t", "go"]), ("Größe 2", ["größe", "2"])])
def test_words(text, found):
    assert words(text) == found
