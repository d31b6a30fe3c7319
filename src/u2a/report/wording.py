"""How values become words: numbers, hostile characters made visible, and what must not be published."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

NOTHING = "–"
HIDDEN = "(hidden)"

_COUNTS = {"helpful": "worth unlearning", "harmful": "would harm"}

_SECRET_KEY = re.compile(
    r"(^|[_-])(token|secret|password|passwd|api_?key|key|credentials?|authorization)$", re.I
)
_SECRET_VALUE = re.compile(
    r"\b(hf_\w{16,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|glpat-[\w-]{16,}|AKIA[0-9A-Z]{12,}|eyJ[\w-]+\.[\w-]+(\.[\w-]+)?)"
)
_URL = re.compile(r"\b([a-z][a-z0-9+.-]*://)(?:[^\s/@]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?", re.I)
_NAME = r"[^\s\\/:*?\"<>|'`,;()]+"
_PATH = re.compile(
    rf"(?<![\w:/\\.~-])(?:(?:file://|~)?/+|[A-Za-z]:[\\/]+|\\\\){_NAME}(?:[\\/]+{_NAME})*[\\/]*"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_URL_START = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.I)
_FILE_ENDING = re.compile(r"\.(gguf|jsonl?|csv|parquet|txt|ya?ml|safetensors|bin|pt)$", re.I)


def number(value: float | int | None, *, digits: int = 4, signed: bool = False) -> str:
    """So many significant digits, integers in full; a dash for None and for what is not finite."""
    if value is None or not math.isfinite(value):
        return NOTHING
    sign = "+" if signed else ""
    if abs(value) >= 1e9 or 0 < abs(value) < 1e-4:
        return f"{value:{sign}.{digits - 2}e}"
    if abs(value) < 1000:
        return f"{value or 0:{sign if value else ''}.{digits}g}"
    return f"{value if isinstance(value, int) else float(f'{value:.{digits}g}'):{sign},.0f}"


def counted(name: str) -> str:
    """What a count of `summary.json` counts, in words."""
    return _COUNTS.get(name, name)


def duration(seconds: float) -> str:
    """Time as people say it: `2.9 s`, `24 min 18 s`, `3 h 5 min`; a dash for what is not finite."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(peak: int) -> str:
    """Bytes as MiB or GiB; a dash for 0, which means not measured."""
    if peak <= 0:
        return NOTHING
    return f"{peak / 2**30:.2f} GiB" if peak >= 2**30 else f"{peak / 2**20:.0f} MiB"


def visible(text: str) -> str:
    """The same text with every character that could mislead a reader or a terminal made visible.

    Control characters become their pictures (NUL -> ␀, escape -> ␛); other controls, changes of writing
    direction and lone surrogates, which no file could hold, become `\\u202e`. Tab and newline stay.
    """
    return "".join(c if c in "\n\t" or c.isprintable() else _shown(c) for c in text)


def _shown(c: str) -> str:
    if ord(c) < 0x20:
        return chr(0x2400 + ord(c))
    if (
        unicodedata.category(c) in ("Zs", "Cn", "Co") or c in "\u200c\u200d\u00ad"
    ):  # harmless, and emoji need joiners
        return c
    return f"\\u{ord(c):04x}"


def excerpt(text: str, length: int) -> str:
    """At most `length` characters on one line."""
    flat = " ".join(text[: 4 * length].split())
    return flat if len(flat) <= length and len(text) <= 4 * length else flat[: length - 1] + "…"


def shortened(text: str, length: int) -> str:
    """The first `length` characters, and how many more there are."""
    more = len(text) - length
    return text if more <= 0 else f"{text[:length]}… ({more:,} more characters)"


def without_secrets(text: str) -> str:
    """Access tokens, and what may carry them in a URL (user, query, fragment), left out."""
    return _SECRET_VALUE.sub(HIDDEN, _URL.sub(r"\1\2", text))


def without_paths(text: str) -> str:
    """Absolute paths reduced to their last name."""
    return _PATH.sub(lambda match: _last_name(match.group()), text)


def is_hub_id(source: str, folders: Iterable[Path] = ()) -> bool:
    """Whether this names a model or data set of the Hub, `org/name`, rather than something on this machine.

    Args:
        folders: where else than in the working directory a relative path may have led.
    """
    if not _HUB_ID.fullmatch(source) or ".." in source or _FILE_ENDING.search(source):
        return False
    return not any((folder / source).exists() for folder in (Path(), *folders))


def public_value(value: Any) -> Any:
    """A setting as anybody may see it: paths, also relative ones, reduced to their last name."""
    if isinstance(value, Mapping):
        return {str(k): HIDDEN if _is_secret(k, v) else public_value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [public_value(v) for v in value]
    if not isinstance(value, str):
        return value
    text = without_secrets(value)
    if is_hub_id(text) or _URL_START.match(text) or not re.search(r"[\\/]", text):
        return text
    is_prose = "\n" in text or re.search(r"\s/\s", text)
    return without_paths(text) if is_prose else _last_name(text)


def settings(config: Mapping[str, Any], *, public: bool) -> str:
    """A configuration as YAML, one line a setting, secrets hidden; if `public`, without paths too."""
    return "\n".join(f"{key}: {value}" for key, value in shown_settings(config, public=public).items())


def shown_settings(config: Mapping[str, Any], *, public: bool) -> dict[str, str]:
    """Each setting's value as YAML on one line, as `settings` shows it."""
    found = {}
    for key, value in config.items():
        shown = HIDDEN if _is_secret(key, value) else public_value(value) if public else _no_secrets(value)
        found[_one_line(str(key))] = _one_line(shown)
    return found


def _no_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): HIDDEN if _is_secret(k, v) else _no_secrets(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_no_secrets(v) for v in value]
    return without_secrets(value) if isinstance(value, str) else value


def _is_secret(key: Any, value: Any) -> bool:
    return bool(value) and not isinstance(value, (bool, int, float)) and bool(_SECRET_KEY.search(str(key)))


def _one_line(value: Any) -> str:
    """YAML of a value on one line; what would take more lines is written as JSON, which YAML reads too."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    text = text.removesuffix("\n").removesuffix("\n...")
    return text if text.isprintable() else json.dumps(value, default=str)


def _last_name(path: str) -> str:
    path = path.removeprefix("file://").rstrip("\\/")
    windows = "\\" in path or re.match(r"[A-Za-z]:", path)
    return (PureWindowsPath(path).name if windows else PurePosixPath(path).name) or NOTHING
