"""A fingerprint of a problem's texts: kept work of other texts is not gone on with."""

from __future__ import annotations

import hashlib

import numpy as np

from u2a.problem import Problem


def fingerprint(problem: Problem) -> str:
    """Changes when the tokens of some negative, validation or retain text do, or a prior weight."""
    digest = hashlib.sha256(np.asarray(problem.prior, dtype=np.float64).tobytes())
    for texts in (
        problem.negative_texts,
        problem.objective.texts,
        problem.utility.texts,
        problem.retain_texts,
    ):
        digest.update(b"none" if texts is None else b"texts")
        for ids in texts["input_ids"] if texts is not None else ():
            digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
    return digest.hexdigest()
