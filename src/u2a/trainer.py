"""`UnlearnTrainer`: weighted unlearning steps as a `transformers.Trainer`.

It minimises (1/Ω)·Σ_i ω_i·ℓ_i(φ) + λ·R(φ) − μ·J(φ), Ω = Σω over the whole training set. All weighting and
reduction happens here: losses return one value per example, and the mean of the step losses over one full
pass is exactly the objective, whatever the batch size, padding or gradient accumulation.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from u2a import processes
from u2a.data.collate import row_name
from u2a.data.render import Renderer
from u2a.logprobs import response_lengths, response_logprobs
from u2a.losses import UnlearningLoss, built_loss, resolve_loss
from u2a.losses.contract import check_loss
from u2a.models.sharding import is_sharded
from u2a.passes.positions import usable_length
from u2a.training.batches import Collator, as_batch, pad_token_id_of
from u2a.training.card import write_card
from u2a.training.config import U2AConfig
from u2a.training.gradient_guard import FiniteGradients
from u2a.training.held_out import held_out, held_out_loss
from u2a.training.micro_batches import in_parts
from u2a.training.own_dropout import own_dropout_off
from u2a.training.reference import Reference
from u2a.training.rows import EvenOrder, PositiveRows, prepared_negatives, prepared_texts
from u2a.training.side_terms import SideTerms
from u2a.training.state import KeptTraining
from u2a.training.trained_model import trained_model
from u2a.types import Batch, GuardStop

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig

    from u2a.objectives.preference import Preference


class UnlearnTrainer(Trainer):
    """Unlearns weighted negatives.

    The model's own dropout (GPT-2's, `attention_dropout`) is off in the steps, as it is in s_ref and the `kl`
    term's reference, and as it was after them. An adapter's (`lora_dropout`) stays.

    Args:
        model: a causal language model, a PEFT model, or the name of one: a folder or a Hub id, loaded in
            float32. The reference of a PEFT model is its base, with the adapter switched off, whatever the
            adapter has learned: one that belongs to the original model is to be merged first; beside one that
            changes its base when it is made, as PiSSA does, `reference_model` is the reference.
        args: `U2AConfig`; default `U2AConfig("u2a-output")`.
        loss: a loss object; default the one that `args` names.
        train_dataset: the negatives: rows of any format of `load_negatives`, read as it reads them, such as
            `prompt`, `completion` and optionally `weight` (ω_i ≥ 0, default 1), `label` (true = left out)
            and `ref_logprob`; or already tokenised ones (`input_ids`, `response_start`, `n_tokens`,
            optionally `weight` and `ref_logprob`).
        eval_dataset: held-out negatives, same columns, or several data sets by name. `eval_loss` is
            (1/Ω)·Σ ω_i·ℓ_i over them, without R and J: the training loss's unlearning term on other rows.
        retain_dataset: texts to keep, in any format of `load_retain`; needed, and taken, by the `nll` and
            `kl` retain terms.
        joint_objective: J on preference pairs for training, which the run climbs with weight μ beside the
            unlearning: the DPO loss with the sign of a gain. Needed, and taken, where `joint_weight` is
            above 0.
        reference_model: frozen copy of the original model, taken as it is; only the `kl` term of full
            fine-tuning and adapters like PiSSA need one.
        l2_start: φ₀ by parameter name, which the `l2` term holds φ near; default φ when the trainer is made,
            or, of a run that is resumed, when it was begun: checkpoints hold it.
        processing_class: the tokenizer; default the one of `model.name_or_path`.
        peft_config: wraps the model into a new adapter, e.g. `LoraConfig(...)`, drawn from `args.seed`; its
            task type is causal language modelling unless it says otherwise.
        callbacks: as in `Trainer`.

    Raises:
        UserError: no negatives of positive weight, a negative or non-finite weight, a retain term without
            retain data, μ without pairs, retain data or pairs that would count for nothing, a reference-based
            loss without a reference or with several active adapters, `peft_config` for a model that has an
            adapter, or a model of which nothing is trained.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from transformers import AutoModelForCausalLM
        >>> from peft import LoraConfig
        >>> from u2a import U2AConfig, UnlearnTrainer, tiny_model
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
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        l2_start: Mapping[str, Tensor] | None = None,
    ) -> None:
        args = args or U2AConfig(output_dir="u2a-output")
        trained, processing_class = trained_model(model, processing_class, peft_config, args.seed)
        args.loss_type, args.retain_loss = resolve_loss(args.loss_type, args.retain_loss)
        args.check_terms(
            retain=bool(retain_dataset),
            pairs=joint_objective is not None,
            reference=reference_model is not None or hasattr(trained, "disable_adapter"),
        )
        self.loss, _ = built_loss(loss or args.loss_type, args.loss_options, args.retain_loss)
        check_loss(self.loss)
        longest = usable_length(trained, args.max_length)
        self._renderer = Renderer(processing_class, template=args.template, max_length=longest)
        negatives = prepared_negatives(train_dataset, self._renderer, "train_dataset")
        self._negatives, self.weights = negatives.rows, negatives.weights
        retain = None
        if retain_dataset is not None:
            retain = prepared_texts(retain_dataset, self._renderer, "retain_dataset")
        self._pad_token_id = pad_token_id_of(processing_class)
        self.args: U2AConfig
        self.model: Any
        super().__init__(
            model=trained,
            args=args,
            train_dataset=PositiveRows(negatives.rows, np.flatnonzero(self.weights)),
            eval_dataset=held_out(eval_dataset, self._renderer),
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
        self._reference = Reference(self, reference_model, self._pad_token_id)
        self._reference_logprobs = self._reference.measure(negatives)
        sets: Any = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        for rows in filter(None, sets.values()):
            self._reference.measure(rows)
        self._beside = SideTerms(self, retain, joint_objective, self._reference, self._pad_token_id, l2_start)

    # -- checkpoints: safetensors and JSON instead of pickles ------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not KeptTraining(self).write_optimizer(output_dir):
            super()._save_optimizer_and_scheduler(output_dir)
        self._beside.keep_start(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not KeptTraining(self).read_optimizer(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._beside.take_start(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        KeptTraining(self).write_random_state(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if not KeptTraining(self).read_random_state(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not KeptTraining(self).read_parameters(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with warnings.catch_warnings():
            # PEFT looks for the base's vocabulary, and an adapter that is a base has no config.json
            warnings.filterwarnings("ignore", message="Could not find a config file in")
            super()._save(output_dir, state_dict)

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

    # -- batches ------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.world_size == 1:
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset
        return EvenOrder(rows, self.args.train_batch_size * self.args.world_size, self.args.data_seed)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one optimiser step, each with its share of retain rows and pairs."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_batches = batches
        self._beside.spread(batches, self._rows_per_step())
        return batches, None

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
        loss = loss + self._beside.loss(model, inputs)
        return (loss, {"losses": losses}) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As the base class's, without the model's own dropout; where memory runs out, a few texts at a time,
        for the very same step."""

        def backward(part: dict[str, Any]) -> Tensor:
            return super(UnlearnTrainer, self).training_step(model, part, num_items_in_batch)

        with own_dropout_off(self.model):
            if self.accelerator.distributed_type != DistributedType.NO:
                # whole, as the other processes would wait for as many backward passes
                return backward(inputs) + self._beside.added_after_passes()
            return in_parts(model, inputs, backward, self.name_of)

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Nothing is deferred: gradients kept whole until a step's last micro-batch would not fit where the
        parameters do not. (And the base class looks into a configuration that only it gives a model.)"""
        yield

    def name_of(self, part: dict[str, Any]) -> str:
        """What messages call the only text (or pair) of a part."""
        for name, texts in self._beside.texts():
            if name in part:
                position = int(part[name]["index"][0])
                return f"the {name.removesuffix('s')} {row_name(texts, position)}"
        return f"the negative {row_name(self._negatives, int(part['index'][0]))}"

    @property
    def scale(self) -> float:
        """What multiplies Σ ω·ℓ in a step: the mean over a pass's steps of (steps/Ω)·Σ_step ω·ℓ is the
        objective."""
        return self._steps_per_pass() / float(self.weights.sum())

    def _rows_per_step(self) -> int:
        return self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    def _steps_per_pass(self) -> int:
        return -(-int(np.count_nonzero(self.weights)) // self._rows_per_step())

    def _non_finite(self, losses: Tensor, batch: Batch) -> GuardStop | None:
        bad = (~torch.isfinite(losses)).nonzero()
        if not len(bad):
            return None
        name = row_name(self._negatives, int(batch.index[int(bad[0])]))
        return GuardStop(
            f"the unlearning loss of the negative {name} is {float(losses[int(bad[0])])} at step "
            f"{self.state.global_step}: lower --learning-rate, or look at that row"
        )

    # -- held-out negatives -------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,  # noqa: ARG002
        prediction_loss_only: bool | None = None,  # noqa: ARG002
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Weighted mean and every ℓ_i (as `predictions`) of held-out rows, all processes sharing them.

        `per_device_eval_batch_size` bounds memory and changes no figure.

        Raises:
            GuardStop: a loss is not finite. UserError: rows that come after training need a reference which
                is not there any more.
        """
        negatives = held_out(dataloader.dataset, self._renderer)
        self._reference.measure(negatives)
        return held_out_loss(self, negatives, metric_key_prefix, self._pad_token_id)
