"""Options that count for nothing beside the others are said, and no others."""

import pytest

from u2a.commands.idle_options import idle_options
from u2a.commands.schemas import ALIGN

PLAIN = {name: spec.default for name, spec in ALIGN.specs.items()}


@pytest.mark.parametrize(
    "given, beside",
    [
        ({"retain_weight": 5.0}, {"retain_loss": "nll"}),
        ({"joint_share": 0.9}, {"joint": 1.0}),
        ({"restart": True, "outer_steps": 1}, {"outer_steps": 2}),
        ({"utility_budget": 0.01, "outer_steps": 1}, {"outer_steps": 2}),
        ({"lora_alpha": 7, "lora_rank": 0}, {"lora_rank": 4}),
        ({"lora_dropout": 0.1, "lora_rank": 0}, {"lora_rank": 4}),
        ({"lora_targets": "q_proj", "lora_rank": 0}, {"lora_rank": 4}),
    ],
    ids=str,
)
def test_what_is_idle_is_said_once_and_only_where_it_is(given, beside):
    (warning,) = idle_options({**PLAIN, **given})
    assert warning.startswith(f"--{next(iter(given)).replace('_', '-')} ")
    assert idle_options({**PLAIN, **given, **beside}) == []


def test_defaults_are_not_idle():
    assert idle_options(PLAIN) == []
    assert idle_options({**PLAIN, "loss": "graddiff", "retain_weight": 0.5}) == []
