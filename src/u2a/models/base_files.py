"""What a whole model keeps of its base word for word: tokenizer files, and its configuration's padding token.

Other programs read them too (llama.cpp's converter, vLLM), and transformers writes them in another form than
it read them: other class names, no `tokenizer.model`. Padding is ours alone: a model without a pad token gets
one while u2a works on it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from u2a.models.source import TOKENIZER_FILES
from u2a.storage.files import write_text

_TOKENIZER = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)
_CONFIGURATIONS = ("config.json", "generation_config.json")
_PAD = "pad_token_id"


def restore_base_files(folder: Path, source: str) -> None:
    """Puts the base's own tokenizer files into the folder of a model that was saved, and its padding token.

    Args:
        folder: with the files of a whole model. source: a folder, or an id of the Hub, of which what is in
            the cache is taken; of anything else nothing is.
    """
    if any(_file(source, name) for name in TOKENIZER_FILES):
        for name in _TOKENIZER:
            if found := _file(source, name):
                shutil.copyfile(found, folder / name)
    for name in _CONFIGURATIONS:
        found = _file(source, name)
        if found and (folder / name).is_file():
            _restore_padding(folder / name, found)


def _file(source: str, name: str) -> Path | None:
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(source, name)
    except HFValidationError:  # the name of a GGUF file, say
        return None
    return Path(cached) if isinstance(cached, str) else None


def _restore_padding(path: Path, base: Path) -> None:
    saved, before = (json.loads(each.read_text(encoding="utf-8")) for each in (path, base))
    if saved.get(_PAD) == before.get(_PAD):
        return
    if _PAD in before:
        saved[_PAD] = before[_PAD]
    else:
        del saved[_PAD]
    write_text(path, json.dumps(saved, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
