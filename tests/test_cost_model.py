"""Costs against numbers by hand: P = 12·d²·L with d = 128·L, so L = 2 means d = 256 and P = 1,572,864."""

from dataclasses import replace

import pytest

from u2a.cost_model import Fleet, Workload

P = 12 * 256**2 * 2
SMALL = Workload(model_params=P, negatives=100, tokens=10, validation=8, retain=4, outer_steps=1)


def test_shape_of_a_model_from_its_size():
    assert SMALL.width == pytest.approx(256)
    assert SMALL.layers == pytest.approx(2)


def test_operations_of_a_token():
    """2·P and 2·L·d·T = 2·2·256·10 for attention; the backward pass as much with LoRA, twice with all."""
    forward = 2 * P + 10_240
    assert SMALL.forward == pytest.approx(forward)
    assert SMALL.both == pytest.approx(2 * forward)
    assert replace(SMALL, lora_rank=0).both == pytest.approx(3 * forward)
    assert replace(SMALL, checkpointing=True).both == pytest.approx(3 * forward)


def test_phases_in_tokens():
    """1,000 tokens of negatives, 160 of pairs, 40 of retain texts, which all measure the curvature too."""
    forward = SMALL.forward
    tokens = {name: flops / forward for name, flops in SMALL.phases().items()}
    assert tokens == pytest.approx(
        {
            "log-probs of the negatives": 1000,
            "gradients of J, U and the curvature": 2 * (160 + 40 + 40),
            "scores": 2000,
            "unlearning": 2 * 500,
            "measuring J, U and KL": 5 * (160 + 2 * 40),
        }
    )
    twice = replace(SMALL, outer_steps=2, retain_term=True, scoring="exact", select=20, epochs=3).phases()
    assert twice["scores"] / forward == pytest.approx(2 * 2.2 * 1000)
    assert twice["unlearning"] / forward == pytest.approx(2 * 20 * 10 * 3 * 2 * 2)


def test_a_proxy_scores_and_does_not_unlearn():
    plain, proxied = SMALL.phases(), replace(SMALL, proxy_params=P / 8).phases()
    assert proxied["scores"] < plain["scores"] / 7
    assert proxied["log-probs of the negatives"] < plain["log-probs of the negatives"] / 7
    assert proxied["unlearning"] == plain["unlearning"]


def test_hours_and_money():
    fleet = Fleet(devices=2, flops=1e12, utilisation=0.5, price=3)
    assert fleet.hours(7.2e15) == pytest.approx(2)  # 1e12 a second
    assert fleet.cost(7.2e15) == pytest.approx(12)  # two devices for two hours


def test_devices_that_hold_one_copy():
    """Activations 34·1·256·2 and logits 12·1·10 are each device's own; shared are 16·P of full training
    and 4·P of the original model, which KL is measured from."""
    full = replace(SMALL, lora_rank=0, batch_tokens=1, vocabulary=10)
    own = 34 * 256 * 2 + 120
    held = full.memory()
    assert held["weights"] == 0  # they are among the trained ones
    assert sum(held.values()) == pytest.approx(20 * P + own)
    assert Fleet(1, 1, device_memory=(20 * P / 3 + own) / 0.9 * 1.001).devices_for(full) == 3
    assert Fleet(1, 1, device_memory=(20 * P / 3 + own) / 0.9 * 0.999).devices_for(full) == 4
    assert Fleet(1, 1, device_memory=own).devices_for(full) == 0


def test_adapter_of_a_known_model():
    """SmolLM2-135M, rank 16 on all linear layers: 4,884,480 parameters; the formula knows only P."""
    assert Workload(134_515_008, 1).trained_params == pytest.approx(4_884_480, rel=0.35)


def test_bytes_on_disk():
    assert SMALL.disk() == {"negatives": 100 * 10 * 8.5, "scores and weights": 100 * 128}
