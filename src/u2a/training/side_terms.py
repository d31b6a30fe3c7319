"""What stands beside the unlearning loss in a step: λ·R on retain rows and −μ·J on preference pairs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from u2a.data.collate import collate
from u2a.data.retain_order import retain_rows
from u2a.logprobs import response_logprobs
from u2a.losses.retain import add_l2_gradient, kl_sum, l2, nll_sum
from u2a.models.sharding import at_rest, is_sharded, set_whole, whole
from u2a.storage.kept_state import read_state, write_state
from u2a.training.batches import as_batch, as_dict
from u2a.training.reference import Reference

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.objectives.preference import Preference


log = logging.getLogger("u2a")

START = "l2_start.safetensors"
"""φ₀ of the `l2` term, in a checkpoint of the trainer."""


class SideTerms:
    """The retain term and the preference pairs of a trainer's steps.

    Args:
        trainer: gives the model, the arguments and the step.
        retain: tokenised texts of the `nll` and `kl` terms. joint: J, or None.
        reference: what `kl` compares with. start: φ₀, which `l2` compares with; None = φ as it is now.
    """

    def __init__(
        self,
        trainer: Any,
        retain: Dataset | None,
        joint: Preference | None,
        reference: Reference,
        pad_token_id: int,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._trainer, self._args = trainer, trainer.args
        self._retain = retain if self._args.retain_loss in ("nll", "kl") else None
        self._mean_length = float(np.mean(self._retain["n_tokens"])) if self._retain is not None else 0.0
        self._joint, self._reference, self._pad_token_id = joint, reference, pad_token_id
        self._start = (
            {name: p.detach().clone() for name, p in self._trained().items()}
            if self._args.retain_loss == "l2"
            else {}
        )
        self._start_is_given = start is not None
        if start is not None:
            self._set_start(start)

    def texts(self) -> Iterator[tuple[str, Dataset]]:
        """The texts of each kind that micro-batches carry, under the key they carry them by."""
        if self._retain is not None:
            yield "retain", self._retain
        if self._joint is not None:
            yield "pairs", self._joint.texts

    # -- φ₀ of the l2 term ----------------------------------------------------------------------------------

    def keep_start(self, checkpoint: str) -> None:
        """Writes φ₀ to a checkpoint, unless whoever makes the trainer gives it; collective where sharded."""
        if not self._start or self._start_is_given:
            return
        tensors = {}
        for name, held in self._start.items():  # one after the other: all of them may not fit on a device
            value = whole(held)
            if self._args.should_save:
                tensors[name] = value.cpu()
        if self._args.should_save:
            write_state(Path(checkpoint) / START, tensors, None)

    def take_start(self, checkpoint: str) -> None:
        """Sets φ₀ to that of the run that is resumed: φ of the new trainer is another one, of another A.

        Raises:
            Damaged: the file is not whole.
        """
        if not self._start or self._start_is_given:
            return
        if not (Path(checkpoint) / START).is_file():
            log.warning("%s has no %s: the l2 term holds φ where this trainer began", checkpoint, START)
            return
        self._set_start(read_state(Path(checkpoint) / START)[0])

    def _set_start(self, start: Mapping[str, Tensor]) -> None:
        for name, held in self._start.items():
            set_whole(held, start[name])

    # -- micro-batches --------------------------------------------------------------------------------------

    def spread(self, batches: list[dict[str, Any]], rows_per_step: int) -> None:
        """Gives each micro-batch of a step its share of the step's retain rows and pairs, in place.

        Both are a function of the seed and the step alone, so a resumed run sees the same ones, and their
        number is taken over the whole step, so accumulation does not change the gradient.
        """
        if batches and self._retain is not None:
            rows = self._rows_of_step(len(self._retain), self._args.retain_batch_size or rows_per_step)
            # as many as so many rows have in the mean, and not as these have: else a step of few short rows
            # pulls as hard as one of long ones, and what is optimised hangs on how many there are
            tokens = torch.tensor(len(rows) * self._mean_length)
            for batch, share, counts in self._shares(batches, rows):
                batch["retain"] = self._collated(self._retain, share)
                batch["retain_tokens"] = tokens
                batch["retain_counts"] = torch.tensor(counts)
        if batches and self._joint is not None:
            texts, count = self._joint.texts, len(self._joint.texts) // 2
            pairs = self._rows_of_step(count, self._args.joint_batch_size or max(1, rows_per_step // 2))
            for batch, share, counts in self._shares(batches, pairs):
                batch["pairs"] = self._collated(texts, [*share, *(pair + count for pair in share)])
                batch["pairs_of_step"] = torch.tensor(len(pairs))
                batch["pairs_count"] = torch.tensor(counts)

    def _rows_of_step(self, total: int, count: int) -> list[int]:
        """Positions of the current optimiser step's rows, over all processes."""
        return retain_rows(total, count, self._trainer.state.global_step, self._args.seed)

    def _shares(
        self, batches: list[dict[str, Any]], rows: list[int]
    ) -> Iterator[tuple[dict[str, Any], list[int], float]]:
        """This process's part of `rows`, spread over its micro-batches, and 1.0; those that get none are left
        out. Of several processes all make as many passes, so that there they get a row that counts 0.0."""
        local = rows[self._args.process_index :: self._args.world_size]
        for batch, share in zip(batches, np.array_split(local, len(batches)), strict=True):
            if len(share):
                yield batch, [int(row) for row in share], 1.0
            elif self._args.world_size > 1:
                yield batch, rows[:1], 0.0

    def _collated(self, texts: Dataset, rows: list[int]) -> dict[str, Tensor]:
        """Those texts as one batch whose `index` are their positions in `texts`."""
        return as_dict(collate([texts[row] for row in rows], rows, pad_token_id=self._pad_token_id))

    # -- losses ---------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor | float:
        """This micro-batch's part of λ·R − μ·J, such that a step's parts add up."""
        loss = self._args.retain_weight * self.retain_loss(model, inputs)
        if self._joint is not None and "pairs" in inputs:
            loss = loss - self._args.joint_weight * self._joint_gain(model, inputs, self._joint)
        return loss

    def retain_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor | float:
        """This micro-batch's part of R."""
        if self._args.retain_loss == "l2":
            # another part of this micro-batch has it, or it is added after the step's passes
            if not inputs.get("l2", True) or is_sharded(self._trainer.model):
                return 0.0
            return l2(self._trained(), self._start) / self._trainer.current_gradient_accumulation_steps
        if "retain" not in inputs:
            return 0.0
        batch = as_batch(inputs["retain"])
        if self._args.retain_loss == "nll":
            total = nll_sum(model, batch)
        else:
            total = kl_sum(model, batch, self._reference.logits(batch))
        return total / inputs["retain_tokens"] * self._scaled(inputs["retain_counts"])

    def added_after_passes(self) -> Tensor | float:
        """Adds the gradient of λ·R to a step's own after its last backward pass, where that is the way: the
        l2 term of a sharded model. Returns λ·R, else 0."""
        model = self._trainer.model
        if self._args.retain_loss != "l2" or not is_sharded(model):
            return 0.0
        if not self._trainer.accelerator.sync_gradients:
            return 0.0
        return add_l2_gradient(self._trained(), self._start, self._args.retain_weight)

    def _joint_gain(self, model: nn.Module, inputs: dict[str, Any], joint: Preference) -> Tensor:
        """This micro-batch's part of the mean of J's terms over the step's pairs."""
        batch = as_batch(inputs["pairs"])
        s = response_logprobs(model, batch)
        terms = joint.terms_of(s, batch.index.cpu())
        return terms.sum() / inputs["pairs_of_step"] * self._scaled(inputs["pairs_count"])

    def _scaled(self, counts: Tensor) -> Tensor | int:
        """DDP averages over processes, so a sum is scaled up by their number."""
        return counts * self._args.world_size if self._args.world_size > 1 else 1

    def _trained(self) -> dict[str, nn.Parameter]:
        at_rest(self._trainer.model)
        return {n: p for n, p in self._trainer.model.named_parameters() if p.requires_grad}
