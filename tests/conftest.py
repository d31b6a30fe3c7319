"""Fixtures for every test; the environment is set before torch and transformers are imported."""

from __future__ import annotations

import logging
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

import cases
import u2a.answers

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from u2a.models.policy import Policy

torch.set_num_threads(1)
u2a.answers.NEW_TOKENS = 8  # tiny random models never end an answer

# The same examples in every run: a red test is then a change's fault. HYPOTHESIS_PROFILE=default draws anew.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: with several processes none is then left at work alone for long."""
    items.sort(key=lambda item: item.path.name != "test_kill.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged goes from its process to the first as UTF-8, which half a surrogate is not."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections
    ]
    return report


@pytest.fixture(params=cases.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each model family in turn."""
    return request.param


@pytest.fixture
def policy() -> Policy:
    """A Llama-like LoRA policy with a random B, float64: made anew for every test."""
    return cases.tiny_policy("llama", dtype=torch.float64)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder with a tiny Llama-like model and its tokenizer, as safetensors."""
    return cases.save_tiny(tmp_path / "model", "llama")


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The private development data folder; the test is skipped where it is absent."""
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("U2A_REAL_DATA") or beside).resolve()
    if not folder.is_dir():
        pytest.skip("no real data here: set U2A_REAL_DATA")
    return folder


@pytest.fixture
def true_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a model's own casts to float32 casts to float64, so that an oracle is as exact as it looks.

    Most families compute norms, rotary angles and softmax in float32 whatever the weights are.
    """
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What `u2a` logs, as text."""
    logger = logging.getLogger("u2a")
    level = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)  # as in a run
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)
