"""What a run costs before there is one: floating-point operations, bytes, hours and money. No torch here.

A forward pass takes 2·P operations per token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1) and, for the
products of attention, 2·L·d·T (half of the positions, on average, are looked at). Its backward pass takes as
much again where the base is frozen (gradients of activations alone: LoRA) and twice as much where every
parameter is trained. Greedy answers at measured points, up to 96 tokens to 16 prompts at once, are not
counted: their time is that of reading the weights 96 times. The width d and the depth L, where nobody tells,
follow from P = 12·L·d² and the usual shape d = 128·L.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SCORING_PASSES = {"fd": 2.0, "jvp": 3.2, "exact": 2.2}
"""Forward passes over the negatives for the slopes of J and U, beyond the one for their log-probs; `exact` is
one backward pass and the products with it. Measured: see `benchmarks/plan.py`."""

CURVATURE_ROWS = 64
"""Retain texts that the default curvature is measured on, at most."""
SCORE_BYTES = 128
"""Of one row of impact.parquet and weights.parquet, uncompressed."""
TOKEN_BYTES = 4 + 4.5
"""Of one token of a row on disk: its id, and its share of the text (English has about 4.5 bytes a token)."""
ADAM_BYTES = 16
"""Of one trained parameter: float32 weight, gradient and AdamW's two moments."""
ACTIVATION_BYTES = 34
"""Of one token at one layer, as multiples of d, in 16 bits, kept for the backward pass (Korthikanti et al.
2022, arXiv 2205.05198, without the part quadratic in the length, which flash attention does not keep)."""


@dataclass(frozen=True)
class Workload:
    """What is to be done.

    Args:
        model_params: P. negatives: N. tokens: mean of prompt and response, T. validation: pairs.
        retain: texts. select: share of the negatives that is unlearned, or their number above 1.
        epochs: passes over those in each outer step. outer_steps, measurements: as in `u2a align`.
        retain_term: whether the loss trains on as many retain tokens besides. scoring: in `SCORING_PASSES`.
        lora_rank: 0 = full fine-tuning. checkpointing: activations are computed again in the backward pass.
        batch_tokens: padded tokens of one batch on one device. vocabulary: its size, for the logits.
        proxy_params: of a smaller model that scores in place of this one; 0 = none.
        bytes_per_param: of the frozen weights: 2 in 16 bits, 0.5 in 4 bits.
    """

    model_params: float
    negatives: float
    tokens: float = 300.0
    validation: float = 256.0
    retain: float = 256.0
    select: float = 0.5
    epochs: float = 1.0
    outer_steps: int = 2
    measurements: int = 4
    retain_term: bool = False
    scoring: str = "fd"
    lora_rank: int = 16
    checkpointing: bool = False
    batch_tokens: float = 4096.0
    vocabulary: float = 128_000.0
    bytes_per_param: float = 2.0
    proxy_params: float = 0.0

    @property
    def width(self) -> float:
        """d."""
        return (128 * self.model_params / 12) ** (1 / 3)

    @property
    def layers(self) -> float:
        """L."""
        return self.width / 128

    @property
    def selected(self) -> float:
        """Negatives that are unlearned."""
        return min(self.negatives, self.select if self.select > 1 else self.select * self.negatives)

    @property
    def trained_params(self) -> float:
        """Those of the adapter on every linear layer (12·d² of a layer in about seven matrices), or all."""
        if self.lora_rank == 0:
            return self.model_params
        return self.layers * self.lora_rank * 7 * 2 * 1.5 * self.width

    @property
    def forward(self) -> float:
        """Operations of a forward pass, per token."""
        return 2 * self.model_params + 2 * self.layers * self.width * self.tokens

    @property
    def both(self) -> float:
        """Operations of a forward and a backward pass, per token."""
        backward = 1 if self.lora_rank else 2
        return (1 + backward + int(self.checkpointing)) * self.forward

    def phases(self) -> dict[str, float]:
        """Operations of each phase of `u2a align`, over all outer steps."""
        base = self.negatives * self.tokens
        scorer = replace(self, model_params=self.proxy_params) if self.proxy_params else self
        pairs, retain = 2 * self.validation * self.tokens, self.retain * self.tokens
        few = min(CURVATURE_ROWS, self.retain) * self.tokens
        measuring = (pairs + 2 * retain) * self.forward  # KL takes the reference as well
        trained = self.selected * self.tokens * self.epochs * (2 if self.retain_term else 1)
        return {
            "log-probs of the negatives": self.outer_steps * base * scorer.forward,
            "gradients of J, U and the curvature": self.outer_steps * (pairs + retain + few) * scorer.both,
            "scores": self.outer_steps * SCORING_PASSES[self.scoring] * base * scorer.forward,
            "unlearning": self.outer_steps * trained * self.both,
            "measuring J, U and KL": (1 + self.outer_steps * self.measurements) * measuring,
        }

    def memory(self) -> dict[str, float]:
        """Peak bytes by what holds them, over all devices that share one copy of the model."""
        kept = 1 if self.checkpointing else self.layers
        return {
            "weights": self.model_params * self.bytes_per_param if self.lora_rank else 0.0,
            "trained parameters and AdamW": self.trained_params * ADAM_BYTES,
            # an adapter that is switched off is the original model; without one a copy stays for KL
            "frozen copy of the original": 0.0 if self.lora_rank else 4.0 * self.model_params,
            "activations of one batch": ACTIVATION_BYTES * self.batch_tokens * self.width * kept
            + (2 * self.batch_tokens * self.width * self.layers if self.checkpointing else 0.0),
            "logits of one batch": 3 * 4 * self.batch_tokens * self.vocabulary,
        }

    def disk(self) -> dict[str, float]:
        """Bytes on disk by what they hold."""
        return {
            "negatives": self.negatives * self.tokens * TOKEN_BYTES,
            "scores and weights": self.negatives * SCORE_BYTES * self.outer_steps,
        }


_SHARED = ("weights", "trained parameters and AdamW", "frozen copy of the original")
"""What several devices hold a part of each."""


@dataclass(frozen=True)
class Fleet:
    """What it runs on.

    Args:
        devices: how many. flops: each one's peak, operations per second, in the number format of the run.
        utilisation: share of the peak that is reached. device_memory: bytes of each. price: of one device
            for an hour, in any money.
    """

    devices: float
    flops: float
    utilisation: float = 0.35
    device_memory: float = 80e9
    price: float = 0.0

    def hours(self, operations: float) -> float:
        """Wall-clock hours, all devices at work."""
        return operations / (self.devices * self.flops * self.utilisation) / 3600

    def cost(self, operations: float) -> float:
        """Money for that time."""
        return self.hours(operations) * self.devices * self.price

    def devices_for(self, workload: Workload) -> int:
        """The fewest devices that hold one copy of the model with what training keeps: weights and optimiser
        are shared out, activations and logits are not."""
        held = workload.memory()
        shared = sum(held[name] for name in _SHARED)
        own = held["activations of one batch"] + held["logits of one batch"]
        free = 0.9 * self.device_memory - own
        return 0 if free <= 0 else -int(-shared // free)
