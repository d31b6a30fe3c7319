"""KL from the original model: how far the model has moved where it should not."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from u2a.evaluation.figure import Figure, ratio

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Subject


log = logging.getLogger("u2a")


@dataclass(frozen=True)
class Divergence:
    """`kl`: KL(model ‖ original) in nats per response token of the retain texts, exact over the vocabulary.
    ↓; the original has 0; none for a model with other tokens. Kullback & Leibler 1951; the guard of
    `u2a align` is the same figure."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("retain",),)

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """`kl`: each text's KL summed over its tokens, and their number."""
        texts = material.retain
        if texts is None:
            return []
        sums = np.zeros(len(texts))
        if subject.original is not None:
            if _tokens(subject) != _tokens(subject.original):
                log.warning("%s: no KL, its tokens are not the original model's", subject.name)
                return []
            sums = _sums(subject, subject.original, texts)
        values = np.stack([sums, np.asarray(texts["n_tokens"], float)], 1)
        return [Figure("kl", values, "lower", "nats per token", ratio)]


def _tokens(subject: Subject) -> tuple[dict[str, int], int]:
    """The tokenizer's, and how many the model gives a probability: some have more, to fill up a block."""
    from u2a.logprobs import unwrapped

    policy = subject.policy
    layer = unwrapped(policy.model).get_output_embeddings()
    return policy.tokenizer.get_vocab(), 0 if layer is None else layer.weight.shape[0]


def _sums(subject: Subject, original: Subject, texts: Dataset) -> np.ndarray:
    import torch

    from u2a.logprobs import evaluating, kl_per_token, response_logits
    from u2a.passes.dataset import fitting_apart

    model, reference = subject.policy.model, original.policy.model
    found = torch.zeros(len(texts), dtype=torch.float64)
    # two models' logits are held at once
    sizes = {"max_tokens": max(1, subject.max_tokens // 2), "pad_token_id": subject.pad_token_id}
    with (
        evaluating(model),
        evaluating(reference),
        torch.no_grad(),
        subject.task(f"{subject.name}: KL from the original", len(texts)) as progress,
    ):
        for attempt in fitting_apart(model, texts, **sizes, kind="measuring KL", deal=False):
            with attempt as batch:
                logits, _, example = response_logits(model, batch)
                theirs = response_logits(reference, batch.to(original.policy.device))[0].to(logits.device)
                each = kl_per_token(logits, theirs).double().cpu()
                found.index_add_(0, batch.index.cpu()[example.cpu()], each)
                if progress:
                    progress(len(batch.index))
    return found.numpy()
