"""One run of a TRL trainer on the policy, in the harness of the other methods."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PrinterCallback

from u2a.baselines.stage import Stage
from u2a.data.render import is_cut_of
from u2a.data.scratch import no_progress_bars
from u2a.models.policy import that_pads
from u2a.training.config import arguments_for
from u2a.types import UserError
from u2a.validation import pair_texts

if TYPE_CHECKING:
    from u2a.models.policy import Policy

Tokens = tuple[list[int], list[int]]
"""Prompt and answer."""

MISSING = "this method needs TRL: pip install 'u2a[baselines]'"


def run(stage: Stage, trainer: str, config: str, rows: Dataset, *, batch_size: int, **options: Any) -> None:
    """Trains the policy in place with `trl.<trainer>`, constant learning rate, until the watch ends it.

    Args:
        rows: tokenised as that trainer's collator takes them: TRL's own tokenisation renders chat templates
            and cuts long texts otherwise than the other methods do. With a column `weight` (`KTOTrainer`
            only) the loss of each row is multiplied by it.
        batch_size: rows of one optimiser step, in TRL's count.
        options: of `trl.<config>`; everything else is as TRL has it, clipping and dropout included.

    Raises:
        UserError: TRL is not installed, or will not train this model; or the policy has no adapter.
    """
    kind, settings = classes(trainer, config)
    if "weight" in rows.column_names:
        kind, options = weighing(kind), {**options, "remove_unused_columns": False}
    args = arguments_for(settings, **common_arguments(stage, batch_size), max_length=None, **options)
    with lent(stage.problem.policy) as model:
        with no_progress_bars(), _only_errors("trl"), own_numbers(model):
            made = kind(
                model=model,
                args=args,
                train_dataset=_stand_in(rows),
                processing_class=that_pads(stage.problem.policy.tokenizer),
                callbacks=[stage.watch],
            )
        made.train_dataset = rows
        made.remove_callback(PrinterCallback)
        made.train()


def weighing(kind: Any) -> Any:
    """A subclass of TRL's `KTOTrainer` in which each row has a weight of its own beside that of its kind.

    TRL multiplies the losses of a kind by one number; a tensor with one for each of them does as well.
    """

    class Weighing(kind):  # type: ignore[misc, valid-type]
        data_collator: Any
        desirable_weight: Any
        undesirable_weight: Any

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            collate = self.data_collator
            self.data_collator = lambda rows: {
                **collate(rows),
                "weight": torch.tensor([row["weight"] for row in rows]),
            }

        def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **options: Any) -> Any:
            rows = {name: value for name, value in inputs.items() if name != "weight"}
            weight, good = inputs["weight"], inputs["label"].bool()
            kinds = self.desirable_weight, self.undesirable_weight
            self.desirable_weight, self.undesirable_weight = kinds[0] * weight[good], kinds[1] * weight[~good]
            try:
                return super().compute_loss(model, rows, *args, **options)
            finally:
                self.desirable_weight, self.undesirable_weight = kinds

    return Weighing


@contextmanager
def _only_errors(library: str) -> Iterator[None]:
    """Within, a library's warnings are not shown: those about text that is not trained on."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _stand_in(rows: Dataset) -> Dataset:
    """Text that the trainer may tokenise when it is made, before the rows proper take its place; of as many
    rows of each label, since it looks at those."""
    if "label" in rows.column_names:
        texts = [{"prompt": "a", "completion": "b", "label": label} for label in rows["label"]]
    else:
        texts = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(rows)
    return Dataset.from_list(texts)


def classes(trainer: str, config: str) -> tuple[Any, Any]:
    """A trainer of TRL and its configuration.

    Raises:
        UserError: TRL is not installed.
    """
    try:
        import trl
    except ImportError:
        raise UserError(MISSING) from None
    return getattr(trl, trainer), getattr(trl, config)


def common_arguments(stage: Stage, batch_size: int) -> dict[str, Any]:
    """What every trainer gets: the budget, the seed, and nothing written but to the scratch folder."""
    policy = stage.problem.policy
    return {
        "output_dir": stage.folder,
        "learning_rate": stage.rate,
        "lr_scheduler_type": "constant",
        "max_steps": stage.budget.most_steps,
        "per_device_train_batch_size": batch_size,
        "seed": stage.seed,
        "use_cpu": policy.device.type == "cpu",
        "bf16": False,  # the numbers of the policy itself, as the other methods
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


@contextmanager
def own_numbers(model: nn.Module) -> Iterator[None]:
    """Around the making of a trainer: TRL turns the adapter of a quantised model into bfloat16, for good.
    Every other method trains it as it is, so it is put back.

    Raises:
        UserError: TRL will not train this model.
    """
    before = {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
    try:
        yield
    except ValueError as error:
        raise UserError(f"TRL refuses it: {error}") from error
    finally:
        for parameter, data in before.items():
            if parameter.dtype != data.dtype:
                parameter.data = data


@contextmanager
def lent(policy: Policy) -> Iterator[Any]:
    """The policy's model for a TRL trainer; what TRL puts on it is taken off again.

    TRL adds a frozen adapter `ref`, gives the base model another `forward` and sets dropout to 0.

    Raises:
        UserError: the policy has no adapter, so that TRL would load the original model a second time.
    """
    if not policy.has_adapter:
        raise UserError("methods of TRL need an adapter here: give --lora-rank above 0")
    model, base = policy.model, policy.model.get_base_model()
    own_forward = base.__dict__.get("forward")
    trained = set(policy.trainable())
    dropouts = [(m, m.p) for m in model.modules() if isinstance(m, nn.Dropout)]
    try:
        yield model
    finally:
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
        base.__dict__.pop("forward", None)
        if own_forward is not None:
            base.forward = own_forward
        for module, p in dropouts:
            module.p = p
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        model.eval()


def pair_rows(stage: Stage, pairs: Dataset) -> Dataset:
    """`prompt_ids`, `chosen_ids`, `rejected_ids` with the tokens that every other method sees."""
    texts, _ = pair_texts(pairs, stage.problem.renderer)
    count = len(pairs)
    chosen, rejected = _parts(texts.select(range(count))), _parts(texts.select(range(count, 2 * count)))
    return Dataset.from_list([one_prompt(good, bad) for good, bad in zip(chosen, rejected, strict=True)])


def one_prompt(chosen: Tokens, rejected: Tokens) -> dict[str, list[int]]:
    """A pair's row, of the prompt and the answer of either side.

    A prompt that lost less of its beginning than the other gives way to it. One that goes on behind the other
    (by a scaffold, an empty thought say, that the other's answer brings itself) leaves that to its answer.
    """
    shorter = min(chosen[0], rejected[0], key=len)

    def answer(prompt: list[int], own: list[int]) -> list[int]:
        goes_on = prompt[: len(shorter)] == shorter and not is_cut_of(shorter, prompt)
        return [*prompt[len(shorter) :], *own] if goes_on else own

    return {"prompt_ids": shorter, "chosen_ids": answer(*chosen), "rejected_ids": answer(*rejected)}


def answer_rows(texts: Dataset, label: bool) -> list[dict[str, Any]]:
    """`prompt_ids`, `completion_ids` and `label` of tokenised answers."""
    return [{"prompt_ids": p, "completion_ids": a, "label": label} for p, a in _parts(texts)]


def _parts(texts: Dataset) -> Sequence[Tokens]:
    """Prompt and answer of each text, as token ids."""
    cuts = zip(texts["input_ids"], texts["response_start"], strict=True)
    return [(list(ids[:start]), list(ids[start:])) for ids, start in cuts]


def seeded_order(count: int, seed: int) -> list[int]:
    """A permutation of `count` rows, a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator).tolist()
