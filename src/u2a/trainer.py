"""`UnlearnTrainer`: weighted unlearning steps as a `transformers.Trainer`.

It minimises (1/Ω)·Σ_i ω_i·ℓ_i(φ) + λ·R(φ) − μ·J(φ), Ω = Σω over the whole training set. All weighting and
reduction happens here: losses return one value per example, and the mean of the step losses over one full
pass is exactly the objective, whatever the batch size, padding or gradient accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from u2a import processes
from u2a.data.collate import collate, row_name
from u2a.data.render import Renderer
from u2a.data.retain_order import retain_rows
from u2a.gradient_guard import FiniteGradients
from u2a.logprobs import (
    dataset_logprobs,
    evaluating,
    response_lengths,
    response_logits,
    response_logprobs,
    unwrapped,
)
from u2a.losses import UnlearningLoss, loss_class, resolve_loss
from u2a.losses.contract import check_loss
from u2a.losses.retain import add_l2_gradient, kl_sum, l2, nll_sum
from u2a.micro_batches import in_parts
from u2a.model_loading import load_source
from u2a.model_source import check_source
from u2a.sharding import at_rest, is_sharded
from u2a.training_batches import Collator, as_batch, as_dict, pad_token_id_of
from u2a.training_card import write_card
from u2a.training_config import U2AConfig
from u2a.training_rows import EvenOrder, PositiveRows, checked_weights, tokenized, with_ids
from u2a.training_state import KeptTraining
from u2a.types import Batch, GuardStop, UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig

    from u2a.objectives.preference import Preference


class UnlearnTrainer(Trainer):
    """Unlearns weighted negatives.

    Args:
        model: a causal language model, a PEFT model (then the reference is the adapter switched off), or the
            name of one: a folder or a Hub id, loaded in float32.
        args: `U2AConfig`; default `U2AConfig("u2a-output")`.
        loss: a loss object; default the one that `args` names.
        train_dataset: the negatives: columns `prompt` (messages or a string), `response` or `completion`,
            and optionally `weight` (ω_i ≥ 0, default 1); or already tokenised ones (`input_ids`,
            `response_start`, `n_tokens`, optionally `weight` and `ref_logprob`).
        retain_dataset: texts to keep, same columns; needed by the `nll` and `kl` retain terms.
        joint_objective: J on preference pairs for training, which the run climbs with weight μ beside the
            unlearning: the DPO loss with the sign of a gain. Needed where `joint_weight` is above 0.
        reference_model: frozen copy of the original model; only the `kl` term of full fine-tuning needs one.
        processing_class: the tokenizer; default the one of `model.name_or_path`.
        peft_config: wraps the model into a new adapter, e.g. `LoraConfig(...)`; its task type is causal
            language modelling unless it says otherwise.
        callbacks: as in `Trainer`.

    Raises:
        UserError: no negatives of positive weight, a negative or non-finite weight, a retain term without
            retain data, μ without pairs, a reference-based loss without a reference.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from transformers import AutoModelForCausalLM
        >>> from peft import LoraConfig
        >>> from u2a import U2AConfig, UnlearnTrainer
        >>> from u2a.tiny_model import tiny_model
        >>> bad = Dataset.from_list([{"prompt": "Hi!", "completion": "Go away.", "weight": 1.0}])
        >>> trainer = UnlearnTrainer(
        ...     model=AutoModelForCausalLM.from_pretrained(tiny_model()),
        ...     args=U2AConfig(tempfile.mkdtemp(), loss_type="npo", num_train_epochs=1, report_to="none"),
        ...     train_dataset=bad,
        ...     peft_config=LoraConfig(r=2, target_modules="all-linear"),
        ... )
        >>> trainer.train().global_step  # doctest: +ELLIPSIS
        {...
        1
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str,
        args: U2AConfig | None = None,
        loss: UnlearningLoss | None = None,
        train_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None,
        joint_objective: Preference | None = None,
        reference_model: PreTrainedModel | nn.Module | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = args or U2AConfig(output_dir="u2a-output")
        if train_dataset is None or len(train_dataset) == 0:
            raise UserError("train_dataset is empty: there is nothing to unlearn")
        if "label" in train_dataset.column_names and any(value is True for value in train_dataset["label"]):
            raise UserError(
                "train_dataset holds rows whose label is true, that is good answers: keep only those to "
                "unlearn, `train_dataset.filter(lambda row: not row['label'])`"
            )
        trained: Any = model
        if isinstance(model, str):
            trained, tokenizer = load_source(
                check_source(model), dtype=torch.float32, trust_remote_code=False
            )
            processing_class = processing_class or tokenizer
        if processing_class is None:
            from transformers import AutoTokenizer

            processing_class = AutoTokenizer.from_pretrained(unwrapped(trained).config.name_or_path)
        if peft_config is not None:
            from peft import get_peft_model

            peft_config.task_type = peft_config.task_type or "CAUSAL_LM"  # what AutoPeftModel looks for
            trained = get_peft_model(trained, peft_config)
        args.retain_loss = resolve_loss(args.loss_type, args.retain_loss)[1]
        if args.retain_loss == "kl" and reference_model is None and not hasattr(trained, "disable_adapter"):
            raise UserError("the kl retain term of full fine-tuning needs reference_model, a frozen copy")
        if args.dataloader_drop_last:
            raise UserError(
                "dataloader_drop_last would leave negatives out of the objective; set it to False"
            )
        self._reference_model = reference_model
        self.loss = loss or loss_class(args.loss_type)(**(args.loss_options or {}))
        check_loss(self.loss)
        self._retain_name, self._retain_weight = args.retain_loss, args.retain_weight
        if self._retain_name in ("nll", "kl") and not retain_dataset:
            raise UserError(f"the {self._retain_name} retain term needs retain data: give retain_dataset")
        if args.joint_weight > 0 and joint_objective is None:
            raise UserError("joint_weight needs preference pairs: give joint_objective")
        self._joint = joint_objective if args.joint_weight > 0 else None
        renderer = Renderer(processing_class, template=args.template, max_length=args.max_length)
        negatives = self._negatives = with_ids(tokenized(train_dataset, renderer), train_dataset)
        self._retain = tokenized(retain_dataset, renderer) if retain_dataset is not None else None
        self._pad_token_id = pad_token_id_of(processing_class)
        weights = np.asarray(train_dataset["weight"] if "weight" in train_dataset.column_names else [], float)
        self.weights = checked_weights(weights, len(train_dataset))
        self.args: U2AConfig
        self.model: Any
        super().__init__(
            model=trained,
            args=args,
            train_dataset=PositiveRows(negatives, np.flatnonzero(self.weights)),
            data_collator=Collator(self._pad_token_id),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.loss_is_scaled_for_ga = True
        if is_sharded(self.model):
            self.is_distributed_loading_by_transformers = True  # it is neither wrapped nor sharded again
        self.step_batches: list[dict[str, Any]] = []  # the current optimiser step's, for callbacks
        self.model_accepts_loss_kwargs = False
        self.add_callback(FiniteGradients(self))
        self._reference_logprobs = self._reference(negatives, train_dataset)
        self._start = (
            {n: p.detach().clone() for n, p in self._trained().items()} if self._retain_name == "l2" else {}
        )

    # -- checkpoints: safetensors and JSON instead of pickles ------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not KeptTraining(self).write_optimizer(output_dir):
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not KeptTraining(self).read_optimizer(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        KeptTraining(self).write_random_state(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if not KeptTraining(self).read_random_state(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not KeptTraining(self).read_parameters(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    # -- the model card -----------------------------------------------------------------------------------

    def create_model_card(  # the base class's arguments: `push_to_hub` passes some of them on
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,  # noqa: ARG002
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,  # noqa: ARG002
        dataset_tags: str | list[str] | None = None,  # noqa: ARG002
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,  # noqa: ARG002
    ) -> None:
        """Writes the card that `push_to_hub` uploads: no path of this machine, no text of rows."""
        if self.is_world_process_zero():
            header = {"language": language, "license": license, "datasets": dataset}
            write_card(self, finetuned_from, header, [tags] if isinstance(tags, str) else tags or [])

    # -- the reference ------------------------------------------------------------------------------------

    def _reference(self, negatives: Dataset, given: Dataset) -> Tensor:
        """s_ref (N,): from the column `ref_logprob`, else measured once with the adapter off."""
        if "ref_logprob" in given.column_names:
            return torch.tensor(given["ref_logprob"], dtype=torch.float64)
        if not self.loss.needs_reference:
            return torch.zeros(len(negatives))
        model = self._reference_model if self._reference_model is not None else self.model
        with _adapter_off(model):
            return dataset_logprobs(
                model,
                negatives,
                max_tokens=max(2048, self.args.max_length),
                pad_token_id=self._pad_token_id,
            )

    # -- batches ------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.world_size == 1:
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset
        return EvenOrder(rows, self.args.train_batch_size * self.args.world_size, self.args.data_seed)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one optimiser step, each with its share of the step's retain rows and pairs.

        Both are a function of the seed and the step alone, so a resumed run sees the same ones, and their
        number is taken over the whole step, so accumulation does not change the gradient.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_batches = batches
        if batches and self._retain is not None and self._retain_name in ("nll", "kl"):
            rows = self._rows_of_step(len(self._retain), self.args.retain_batch_size or self._rows_per_step())
            tokens = torch.tensor(sum(self._retain[row]["n_tokens"] for row in rows))
            for batch, share, counts in self._shares(batches, rows):
                batch["retain"] = self._collated(self._retain, share)
                batch["retain_tokens"] = tokens
                batch["retain_counts"] = torch.tensor(counts)
        if batches and self._joint is not None:
            texts, count = self._joint.texts, len(self._joint.texts) // 2
            wanted = self.args.joint_batch_size or max(1, self._rows_per_step() // 2)
            pairs = self._rows_of_step(count, wanted)
            for batch, share, counts in self._shares(batches, pairs):
                batch["pairs"] = self._collated(texts, [*share, *(pair + count for pair in share)])
                batch["pairs_of_step"] = torch.tensor(len(pairs))
                batch["pairs_count"] = torch.tensor(counts)
        return batches, None

    def _rows_of_step(self, total: int, count: int) -> list[int]:
        """Positions of the current optimiser step's rows, over all processes."""
        return retain_rows(total, count, self.state.global_step, self.args.seed)

    def _shares(
        self, batches: list[dict[str, Any]], rows: list[int]
    ) -> Iterator[tuple[dict[str, Any], list[int], float]]:
        """This process's part of `rows`, spread over its micro-batches, and 1.0; those that get none are left
        out. Of several processes all make as many passes, so that there they get a row that counts 0.0."""
        local = rows[self.args.process_index :: self.args.world_size]
        for batch, share in zip(batches, np.array_split(local, len(batches)), strict=True):
            if len(share):
                yield batch, [int(row) for row in share], 1.0
            elif self.args.world_size > 1:
                yield batch, rows[:1], 0.0

    def _collated(self, texts: Dataset, rows: list[int]) -> dict[str, Tensor]:
        """Those texts as one batch whose `index` are their positions in `texts`."""
        return as_dict(collate([texts[row] for row in rows], rows, pad_token_id=self._pad_token_id))

    # -- the loss -----------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002
    ) -> Any:
        """This micro-batch's part of (1/Ω)·Σ ω_i·ℓ_i + λ·R − μ·J, such that a step's parts add up."""
        loss: Any = 0.0
        losses = None
        if "input_ids" in inputs:
            batch = as_batch(inputs)
            s = response_logprobs(model, batch)
            reference = self._reference_logprobs[batch.index.cpu()].to(s)
            losses = self.loss(s, reference, response_lengths(batch).to(s))
            processes.stop_together(self._non_finite(losses.detach(), batch))
            weights = torch.as_tensor(self.weights, dtype=s.dtype)[batch.index.cpu()].to(s)
            if self.args.world_size > 1:
                weights = weights.masked_fill(batch.index < 0, 0.0)  # fillers
            # DDP averages over processes, so the sum is scaled back up by their number.
            loss = self.scale * (weights * losses).sum() * self.args.world_size
        loss = loss + self._retain_weight * self._retain_loss(model, inputs)
        if self._joint is not None and "pairs" in inputs:
            loss = loss - self.args.joint_weight * self._joint_gain(model, inputs, self._joint)
        return (loss, {"losses": losses}) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As the base class's; where memory runs out, a few texts at a time, for the very same step."""

        def backward(part: dict[str, Any]) -> Tensor:
            return super(UnlearnTrainer, self).training_step(model, part, num_items_in_batch)

        if self.accelerator.distributed_type != DistributedType.NO:
            loss = backward(inputs)  # the other processes would wait for as many backward passes
            if self._retain_name == "l2" and is_sharded(self.model) and self.accelerator.sync_gradients:
                loss = loss + add_l2_gradient(self._trained(), self._start, self._retain_weight)
            return loss
        return in_parts(model, inputs, backward, self.name_of)

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Nothing is deferred: gradients kept whole until a step's last micro-batch would not fit where the
        parameters do not. (And the base class looks into a configuration that only it gives a model.)"""
        yield

    def name_of(self, part: dict[str, Any]) -> str:
        """What messages call the only text (or pair) of a part."""
        for name, texts in (("retain", self._retain), ("pairs", self._joint and self._joint.texts)):
            if name in part and texts is not None:
                position = int(part[name]["index"][0])
                return f"the {name.removesuffix('s')} {row_name(texts, position)}"
        return f"the negative {row_name(self._negatives, int(part['index'][0]))}"

    @property
    def scale(self) -> float:
        """What multiplies Σ ω·ℓ in a step: the mean over a pass's steps of (steps/Ω)·Σ_step ω·ℓ is the
        objective."""
        return self._steps_per_pass() / float(self.weights.sum())

    def _trained(self) -> dict[str, nn.Parameter]:
        at_rest(self.model)
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def _rows_per_step(self) -> int:
        return self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    def _steps_per_pass(self) -> int:
        return -(-int(np.count_nonzero(self.weights)) // self._rows_per_step())

    def _retain_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor | float:
        if self._retain_name == "l2":
            # another part of this micro-batch has it, or it is added after the step's passes
            if not inputs.get("l2", True) or is_sharded(self.model):
                return 0.0
            return l2(self._trained(), self._start) / self.current_gradient_accumulation_steps
        if "retain" not in inputs:
            return 0.0
        batch = as_batch(inputs["retain"])
        if self._retain_name == "nll":
            total = nll_sum(model, batch)
        else:
            reference = self._reference_logits(batch)
            total = kl_sum(model, batch, reference)
        scale = inputs["retain_counts"] * self.args.world_size if self.args.world_size > 1 else 1
        return total / inputs["retain_tokens"] * scale

    def _joint_gain(self, model: nn.Module, inputs: dict[str, Any], joint: Preference) -> Tensor:
        """This micro-batch's part of the mean of J's terms over the step's pairs."""
        batch = as_batch(inputs["pairs"])
        s = response_logprobs(model, batch)
        terms = joint.terms_of(s, batch.index.cpu())
        scale = inputs["pairs_count"] * self.args.world_size if self.args.world_size > 1 else 1
        return terms.sum() / inputs["pairs_of_step"] * scale

    def _reference_logits(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            if self._reference_model is not None:
                return response_logits(self._reference_model.to(self.model.device), batch)[0]
            with _adapter_off(self.model), evaluating(self.model):
                return response_logits(self.model, batch)[0]

    def _non_finite(self, losses: Tensor, batch: Batch) -> GuardStop | None:
        bad = (~torch.isfinite(losses)).nonzero()
        if not len(bad):
            return None
        name = row_name(self._negatives, int(batch.index[int(bad[0])]))
        return GuardStop(
            f"the unlearning loss of the negative {name} is {float(losses[int(bad[0])])} at step "
            f"{self.state.global_step}: lower --learning-rate, or look at that row"
        )


def _adapter_off(model: Any) -> AbstractContextManager[Any]:
    """The reference: the adapter switched off. Without one, the model as it is when training begins."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
