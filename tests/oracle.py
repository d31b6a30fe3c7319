"""Dense float64 reference for curvatures and hypergradients on a tiny transformer: plain and slow.

Shares no code with `u2a.impact` or `u2a.logprobs`: one batch, the whole logits, one vector φ of P elements.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import cases
from problems import BAD, GOOD, answers, pairs, tiny_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import Dataset

    from u2a.problem import Problem

FEW_BAD = [BAD[0], BAD[2], BAD[4], BAD[5]]
FEW_GOOD = [*GOOD, ("Which tea is good?", "Some like it black.")]
"""Two rows for the retain term, two for U."""

_VECTORS_AT_ONCE = 64


def small_problem(*, rank: int = 2, targets: str = "v_proj", seed: int = 0, **options: Any) -> Problem:
    """A float64 Llama problem of few short texts and few parameters: LoRA with random B on some layers."""
    from unittest.mock import patch

    from u2a.models.policy import Policy, add_adapter, ensure_pad_token

    def few_parameters(family: str, **_options: Any) -> Policy:
        tokenizer = cases.tiny_tokenizer(family)
        model = cases.tiny_model(family, dtype=torch.float64, seed=seed, tokenizer=tokenizer)
        ensure_pad_token(tokenizer, model)
        adapted = add_adapter(model, rank=rank, targets=targets, seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.data.copy_(0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        return Policy(model=adapted, tokenizer=tokenizer, has_adapter=True, source="tiny")

    few = {"negatives": answers(FEW_BAD), "preferences": pairs().select([0, 2])}
    given = {**few, "retain": answers(FEW_GOOD), "template": "none", **options}
    with patch.object(cases, "tiny_policy", few_parameters):
        return tiny_problem("llama", **given)


class Oracle:
    """The inner problem, J and U of a `Problem` as functions of one vector φ (P,), with dense derivatives.

    Args:
        retain_weight: λ.
        damping: δ of a further term δ/2·‖φ − φ₀‖², φ₀ the parameters at construction.
    """

    def __init__(self, problem: Problem, retain_weight: float = 1.0, damping: float = 0.0) -> None:
        self.problem, self.retain_weight, self.damping = problem, retain_weight, damping
        self.shapes = {n: p.shape for n, p in problem.policy.trainable().items()}
        self.start = self.flat({n: p.detach() for n, p in problem.policy.trainable().items()}).clone()
        self.negatives = problem.negative_texts
        # U's texts stand for a retain term that is `none`
        self.kept = problem.utility.texts if problem.retain_texts is None else problem.retain_texts
        self.tokens = sum(self.kept["n_tokens"])
        with problem.reference_model(), torch.no_grad():
            self.reference_logits = self._logits(self.kept, None)[0]

    # -- vectors --------------------------------------------------------------------------------------------

    def flat(self, direction: dict[str, Tensor]) -> Tensor:
        """(P,) in the order of φ."""
        return torch.cat([direction[name].flatten() for name in self.shapes])

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """The reverse of `flat`."""
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        return {n: part.view(shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def put(self, phi: Tensor) -> None:
        """Moves the problem's policy to φ."""
        with torch.no_grad():
            for p, value in zip(
                self.problem.policy.trainable().values(), self.named(phi).values(), strict=True
            ):
                p.copy_(value)

    # -- functions of φ -------------------------------------------------------------------------------------

    def _logits(self, texts: Dataset, phi: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (R, V) at response tokens, the tokens (R,) and their rows (R,)."""
        width = max(len(ids) for ids in texts["input_ids"])
        ids = torch.zeros(len(texts), width, dtype=torch.int64)
        mask, response = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for i in range(len(texts)):
            row = texts[i]["input_ids"]
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
            response[i, texts[i]["response_start"] : len(row)] = True
        model = self.problem.policy.model
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        with _eager(model):
            if phi is None:
                logits = model(**inputs).logits
            else:
                logits = torch.func.functional_call(model, self.named(phi), (), inputs).logits
        shifted = response[:, 1:]
        return logits[:, :-1][shifted], ids[:, 1:][shifted], shifted.nonzero()[:, 0]

    def logprobs(self, texts: Dataset, phi: Tensor) -> Tensor:
        """s (N,)."""
        logits, tokens, rows = self._logits(texts, phi)
        each = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        return torch.zeros(len(texts), dtype=torch.float64).index_add(0, rows, each)

    def losses(self, phi: Tensor) -> Tensor:
        """ℓ (N,)."""
        s = self.logprobs(self.negatives, phi)
        return self.problem.loss(s, self.problem.reference.double(), self.problem.lengths.double())

    def retain(self, phi: Tensor) -> Tensor:
        """R."""
        name = self.problem.retain_loss
        if name == "nll":
            return -self.logprobs(self.kept, phi).sum() / self.tokens
        if name == "kl":
            policy = self._logits(self.kept, phi)[0].log_softmax(-1)
            reference = self.reference_logits.log_softmax(-1)
            return (reference.exp() * (reference - policy)).sum() / self.tokens
        return 0.5 * (phi - self.start).square().sum() if name == "l2" else phi.sum() * 0

    def inner(self, phi: Tensor, weights: Tensor | None = None) -> Tensor:
        """(1/N)·Σ ω_i·ℓ_i + λ·R + δ/2·‖φ − φ₀‖²: Ω = N is held fixed, whatever ω is."""
        losses = self.losses(phi)
        forget = (losses if weights is None else weights * losses).sum() / len(losses)
        drift = 0.5 * self.damping * (phi - self.start).square().sum()
        return forget + self.retain_weight * self.retain(phi) + drift

    def objective(self, phi: Tensor) -> Tensor:
        """J."""
        return self.problem.objective.terms(self.logprobs(self.problem.objective.texts, phi)).mean()

    def utility(self, phi: Tensor) -> Tensor:
        """U."""
        texts = self.problem.utility.texts
        return self.logprobs(texts, phi).sum() / sum(texts["n_tokens"])

    # -- dense matrices -------------------------------------------------------------------------------------

    def hessian(self, phi: Tensor) -> Tensor:
        """∇² of `inner` (P, P)."""
        return hessian(self.inner, phi)

    def gauss_newton(self, phi: Tensor) -> Tensor:
        """Σ_t J_tᵀ·(diag(p) − ppᵀ)·J_t / T over the response tokens of the kept texts (P, P)."""
        logits = self._logits(self.kept, phi)[0].detach()
        j = jacobian(lambda point: self._logits(self.kept, point)[0].flatten(), phi)
        j = j.view(*logits.shape, -1)  # (R, V, P)
        p = logits.softmax(-1)
        mean = torch.einsum("rv,rvp->rp", p, j)
        return (torch.einsum("rv,rvp,rvq->pq", p, j, j) - mean.T @ mean) / self.tokens

    def empirical_fisher(self, phi: Tensor) -> Tensor:
        """Σ_i ∇s_i·∇s_iᵀ / T over the kept texts (P, P)."""
        g = jacobian(lambda point: self.logprobs(self.kept, point), phi)
        return g.T @ g / self.tokens

    def layer_tokens(self, labels: dict[int, Tensor]) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Inputs x (T, in) and gradients g (T, out) of Σ log-prob at the outputs of φ's layers, text by text.

        `labels` (R_i,) stand in for the response tokens of kept text i. One text at a time, no padding.
        """
        model = self.problem.policy.model
        modules = {name: model.get_submodule(name.removesuffix(".weight")) for name in self.shapes}
        found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.shapes}
        for i in range(len(self.kept)):
            seen: dict[str, tuple[Tensor, Tensor]] = {}

            def keep(name: str, seen: dict[str, tuple[Tensor, Tensor]] = seen) -> Callable[..., None]:
                return lambda _module, args, output: seen.update({name: (args[0], output)})

            handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
            logits = self._logits(self.kept.select([i]), None)[0]
            for handle in handles:
                handle.remove()
            value = logits.log_softmax(-1).gather(1, labels[i][:, None]).sum()
            gradients = torch.autograd.grad(value, [out for _, out in seen.values()])
            for (name, (x, _)), g in zip(seen.items(), gradients, strict=True):
                found[name].append((x[0].detach(), g[0]))
        return found

    def kronecker_blocks(self, labels: dict[int, Tensor], corrected: bool = False) -> dict[str, Tensor]:
        """G ⊗ A of each layer of φ, (out·in, out·in), with these labels; `corrected` as EK-FAC does."""
        blocks = {}
        for name, tokens in self.layer_tokens(labels).items():
            x, g = (torch.cat(part) for part in zip(*tokens, strict=True))
            a, b = x.T @ x / len(x), g.T @ g / self.tokens
            blocks[name] = torch.kron(b, a)
            if corrected:
                basis = torch.kron(torch.linalg.eigh(b)[1], torch.linalg.eigh(a)[1])
                each = torch.stack([(g_i.T @ x_i).flatten() for x_i, g_i in tokens])  # (n, out·in)
                values = (each @ basis).square().sum(0) / self.tokens
                blocks[name] = basis @ values.diag() @ basis.T
        return blocks

    # -- the inner problem solved ---------------------------------------------------------------------------

    def minimum(self, phi: Tensor, weights: Tensor | None = None, matrix: Tensor | None = None) -> Tensor:
        """φ*(ω): Newton steps from φ with a Hessian held for as long as it serves, to ‖∇‖ ≤ 1e-12.

        `matrix` is a Hessian to begin with. Fails where that is no minimum.
        """
        for _ in range(200):
            gradient = grad(lambda point: self.inner(point, weights), phi)
            if float(gradient.norm()) <= 1e-12:
                return phi
            if matrix is None:
                matrix = hessian(lambda point: self.inner(point, weights), phi)
                assert float(torch.linalg.eigvalsh(matrix)[0]) > 0, "the inner problem is not convex here"
            moved = phi - torch.linalg.solve(matrix, gradient)
            after = grad(lambda point: self.inner(point, weights), moved)
            if float(after.norm()) > 0.5 * float(gradient.norm()):
                matrix = None
            phi = moved
        raise AssertionError("the inner problem was not solved")


def grad(f: Callable[[Tensor], Tensor], phi: Tensor) -> Tensor:
    """∇f (P,)."""
    leaf = phi.detach().clone().requires_grad_(True)
    return torch.autograd.grad(f(leaf), leaf)[0]


def hessian(f: Callable[[Tensor], Tensor], phi: Tensor) -> Tensor:
    """∇²f (P, P), row by row."""
    leaf = phi.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    rows = [
        torch.autograd.grad(gradient, leaf, part, retain_graph=True, is_grads_batched=True)[0]
        for part in torch.eye(len(phi), dtype=phi.dtype).split(_VECTORS_AT_ONCE)
    ]
    return torch.cat(rows)


def jacobian(f: Callable[[Tensor], Tensor], phi: Tensor) -> Tensor:
    """∂f/∂φ (M, P) of f: (P,) -> (M,), by whichever differentiation needs fewer passes."""
    outputs = f(phi.detach()).numel()
    if outputs > len(phi):
        primal = phi.detach()
        along = torch.func.vmap(lambda v: torch.func.jvp(f, (primal,), (v,))[1], chunk_size=_VECTORS_AT_ONCE)
        with torch.no_grad():
            return along(torch.eye(len(phi), dtype=phi.dtype)).T
    leaf = phi.detach().clone().requires_grad_(True)
    value = f(leaf)
    return torch.autograd.grad(value, leaf, torch.eye(outputs, dtype=phi.dtype), is_grads_batched=True)[0]


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Fused attention can be differentiated neither twice nor forward."""
    base = model.get_base_model()
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(before)
