"""The policy: a causal language model, its tokenizer and what of it is trained.

With LoRA the reference π_ref is the adapters off, so there is never a second copy. A source that is itself an
adapter is merged into its base first.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from u2a import processes
from u2a.models.adapter_kinds import refuse_changed_base
from u2a.models.base_files import restore_base_files
from u2a.models.demo_model import demo_model
from u2a.models.loading import load_source, quiet_transformers
from u2a.models.merging import merged, quiet_peft
from u2a.models.options import DTYPES, device_of, dtype_of, quantization_of, targets_of
from u2a.models.sharding import at_rest, is_sharded, shard, whole
from u2a.models.source import ModelSource, check_source
from u2a.types import UserError

__all__ = [
    "Policy",
    "add_adapter",
    "check_source",
    "demo_model",
    "ensure_pad_token",
    "load_policy",
    "that_pads",
]


@dataclass
class Policy:
    """A model under alignment, in eval mode; `source` is what it was loaded from.

    `model` is a `PeftModel` when `has_adapter`, else the transformers model itself (full fine-tuning).
    """

    model: Any
    tokenizer: Any
    has_adapter: bool
    source: str
    _use_cache: bool | None = field(init=False)

    def __post_init__(self) -> None:
        self._use_cache = getattr(self.model.config, "use_cache", None)

    def trainable(self) -> dict[str, nn.Parameter]:
        """φ: the trained parameters by name, in the model's own order. Empty within `reference()`."""
        at_rest(self.model)
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """Within, the model is π_ref: the adapters are off.

        Raises:
            UserError: full fine-tuning has no adapters; its reference log-probs must be cached beforehand. Or
                the adapter is of a kind that may have changed its base.
        """
        if not self.has_adapter:
            raise UserError(
                "full fine-tuning (--lora-rank 0) keeps no reference model: its reference log-probs must be "
                "computed once, before training, and cached; a KL term needs a frozen copy"
            )
        refuse_changed_base(self.model)
        with self.model.disable_adapter():
            yield self.model

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    def shard(self) -> None:
        """Spreads the parameters over the processes, as the launcher's configuration says; collective."""
        self.model = shard(self.model)

    def whole_state(self) -> dict[str, Tensor] | None:
        """What `save` needs of a model that is sharded, on the CPU, in the first process; collective. Else
        None."""
        if not is_sharded(self.model):
            return None
        kept = self.trainable() if self.has_adapter else self.model.state_dict()
        gathered = ((name, whole(value.detach()).cpu()) for name, value in kept.items())
        return {name: value for name, value in gathered if processes.is_main()}

    def save(self, folder: Path | str, state: dict[str, Tensor] | None = None) -> None:
        """Writes the adapter, or the whole model where there is none, and the tokenizer, as safetensors.

        Args:
            state: `whole_state()` of a sharded model.
        """
        # The vocabulary is never grown, and PEFT's way of finding that out asks the Hub for the base.
        options: dict[str, Any] = {"save_embedding_layers": False} if self.has_adapter else {}
        if state is not None:
            options["state_dict"] = state
        if self._use_cache is not None:  # every Trainer switches it off in the config that is saved
            self.model.config.use_cache = self._use_cache
        with quiet_transformers():
            self.model.save_pretrained(folder, **options)
        self.tokenizer.save_pretrained(folder)
        if not self.has_adapter:
            restore_base_files(Path(folder), self.tokenizer.name_or_path)

    def redraw_adapter(self, seed: int) -> None:
        """LoRA's A drawn anew from `seed` and B = 0, in place: the original model again. Without an adapter
        nothing is drawn."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for module in self.model.modules() if self.has_adapter else ():
                if isinstance(module, LoraLayer):
                    module.reset_lora_parameters("default", True)

    def merge(self) -> PreTrainedModel:
        """The whole model with the adapter folded in, to be saved; no copy, so the policy is merged after it.

        Tied embeddings stay tied, unless an adapter is on one of them: the head then gets its own weight.

        Raises:
            UserError: the base is quantised; folding into 4 bits would round the adapter away.
        """
        if not self.has_adapter:
            return self.model
        if getattr(self.model.get_base_model(), "is_quantized", False):
            raise UserError(
                "an adapter cannot be merged into a base in 4 bits without loss: save the adapter, then load "
                "it with --quantize none"
            )
        self.model = merged(self.model)
        self.has_adapter = False
        return self.model


def load_policy(
    source: str | Path,
    *,
    lora_rank: int = 16,
    lora_alpha: int | None = None,
    lora_dropout: float = 0.0,
    lora_targets: str = "all-linear",
    dtype: str = "auto",
    quantize: str = "none",
    seed: int = 0,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    on_cpu: bool = False,
    trained: bool = True,
) -> Policy:
    """Loads a model and puts a new LoRA adapter with B = 0 on it, so that it starts as the original model.

    Args:
        source: a folder with safetensors, a Hub id, a GGUF file, a PEFT adapter folder (merged into its base
            first), or `demo`.
        lora_rank: 0 = full fine-tuning. lora_alpha: default 2·rank.
        lora_targets: `all-linear`, or names of linear layers separated by commas.
        dtype: of the base; `auto` = bfloat16 on accelerators that have it, else float32. Adapters of a 16-bit
            base are float32, and so is a whole model that is trained.
        quantize: `4bit` (NF4, double quantisation) needs an accelerator, bitsandbytes and an adapter.
        seed: of the adapter's A; the global random state is left alone.
        device: default the accelerator of this process (not Apple's `mps`, which has no float64), else the
            CPU. Another card than the process's own is refused: `CUDA_VISIBLE_DEVICES` picks one.
        trust_remote_code: run code that comes with the model.
        attn_implementation: `eager`, `sdpa` or `flash_attention_2`; None = what transformers takes.
        on_cpu: leave it on the CPU, in the format for `device`: `Policy.shard` spreads it from there.
        trained: False = a whole model only to be read: frozen, and `auto` holds for it too.

    Raises:
        UserError: the source or an option is unusable.

    Example:
        >>> from u2a import load_policy, tiny_model
        >>> policy = load_policy(tiny_model(), lora_rank=2)
        >>> policy.has_adapter, all("lora_" in name for name in policy.trainable())
        (True, True)
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: take one of auto, {', '.join(DTYPES)}")
    if lora_rank < 0:
        raise UserError(f"--lora-rank {lora_rank}: take 0 (full fine-tuning) or more")
    where = device_of(device)
    # AdamW steps of a usual size would be rounded away in 16-bit parameters
    full = dtype == "auto" and lora_rank == 0 and trained
    kind = torch.float32 if full else dtype_of(dtype, where)
    where = torch.device("cpu") if on_cpu else where
    checked = check_source(source, trust_remote_code=trust_remote_code)
    if checked.kind == "demo":
        checked = ModelSource("demo", "folder", demo_model())
    options: dict[str, Any] = {"dtype": kind, "trust_remote_code": trust_remote_code}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    if where.type != "cpu":
        options["device_map"] = {"": where}
    if quantize != "none":
        options["quantization_config"] = quantization_of(quantize, checked, lora_rank, where, kind)
    model, tokenizer = load_source(checked, **options)
    ensure_pad_token(tokenizer, model)
    if quantize == "none" and not on_cpu:
        model = model.to(where)
    if lora_rank == 0:
        model.requires_grad_(trained)
        return Policy(model.eval(), tokenizer, False, checked.name)
    if quantize != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = add_adapter(
        model, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout, targets=lora_targets, seed=seed
    )
    # PEFT would note the base of a merged adapter, or the folder of a GGUF file: not what we started from.
    started_from = checked.name if checked.path is None else str(checked.path.resolve())
    model.peft_config["default"].base_model_name_or_path = started_from
    return Policy(model, tokenizer, True, checked.name)


def add_adapter(
    model: PreTrainedModel,
    *,
    rank: int = 16,
    alpha: int | None = None,
    dropout: float = 0.0,
    targets: str = "all-linear",
    seed: int = 0,
) -> PeftModel:
    """A new LoRA adapter (Hu et al., arXiv 2106.09685) around `model`: B = 0, A drawn from `seed`; eval mode.

    Raises:
        UserError: a target is no linear layer of the model, or the dropout is not in [0, 1).
    """
    if not 0 <= dropout < 1:
        raise UserError(f"--lora-dropout {dropout}: take a number from 0 to below 1")
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=targets_of(model, targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        with warnings.catch_warnings(), quiet_peft():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT's own calls of transformers
            wrapped = get_peft_model(model, config)
    return wrapped.eval()


def that_pads(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, for a library that pads by it: a copy whose pad token is token 0 where it has none."""
    if tokenizer.pad_token_id is not None:
        return tokenizer
    lent = copy.deepcopy(tokenizer)
    lent.pad_token = lent.convert_ids_to_tokens(0)
    return lent


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """A tokenizer without a pad token gets its EOS token for it: padding is masked by position, not by id.

    Without an EOS token either it has none, and batches are filled with token 0, which stays a token of texts
    (`!` of many byte-level vocabularies): as the pad token it would be left out of answers, and the tokenizer
    that is saved would read texts otherwise.
    """
    if tokenizer.pad_token_id is None and tokenizer.eos_token is None:
        return
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
