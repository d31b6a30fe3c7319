"""The precision that steps of finite differences are chosen by."""

from types import SimpleNamespace

import pytest
import torch

from cases import tiny_policy
from u2a.logprobs import forward_precision

EPS = {kind: torch.finfo(kind).eps for kind in (torch.bfloat16, torch.float32)}


@pytest.mark.parametrize(
    "kind, expected",
    [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32), (torch.float64, torch.float32)],
)
def test_it_is_the_coarsest_formats_and_float32s_at_best(kind, expected):
    assert forward_precision(tiny_policy("llama", dtype=kind).model) == EPS[expected]


def test_a_quantised_base_computes_in_a_format_of_its_own():
    """What is not quantised of it is float32, and would let fd step too finely to be seen."""
    policy = tiny_policy("llama", dtype=torch.float32)
    config = policy.model.get_base_model().config
    config.quantization_config = SimpleNamespace(bnb_4bit_compute_dtype=torch.bfloat16)
    assert forward_precision(policy.model) == EPS[torch.bfloat16]
    config.quantization_config = {"quant_method": "another"}
    assert forward_precision(policy.model) == EPS[torch.float32]
