"""What is fuzzed: bytes in; rows, values or a `UserError` out. Anything else is a finding.

`rows`: the row validators of every role. `config`: YAML and flags of every command, methods of a comparison,
selections. `files`: the loaders, from a file on disk to a data set and its checks.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["u2a", "yaml"]):
    from u2a.baselines import METHODS
    from u2a.commands.comparison_plan import make_plan
    from u2a.compare.plan import parse_methods
    from u2a.data import formats, load, reading, validate
    from u2a.types import UserError
    from u2a.weighting import Weighting, parse_selection

import seeds

KEYS = sorted(formats.READ_KEYS | {"safer_response_id", "is_response_0_safe", "is_response_1_safe", "other"})
CONVERSIONS = (formats.negatives_of, formats.retain_of, formats.preferences_of, formats.prompts_of)
LOADERS = {
    "negatives": load.load_negatives,
    "preferences": load.load_preferences,
    "retain": load.load_retain,
    "prompts": load.load_prompts,
}
_FOLDER = Path(tempfile.mkdtemp(prefix="u2a-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
_METHOD_KEYS = ("method", "name", "loss", "select", "beta", "joint", "eta", "pairs", "pretrained", "other")


def rows(data: bytes) -> None:
    """One row, as json text or built from the bytes, through every role's conversion."""
    if not data:
        return
    values = _decoded(data[1:]) if data[0] % 2 == 0 else _object(atheris.FuzzedDataProvider(data[1:]))
    if not isinstance(values, dict):
        return
    values = {key: value for key, value in values.items() if value is not None}
    formats.has_label(values)
    for convert in CONVERSIONS:
        try:
            found = convert(values, "f, row 1")
        except UserError as fault:
            _expect(str(fault).startswith("f, row 1"), "the message does not name the row")
            continue
        for row in found:
            _expect(all(set(turn) == {"role", "content"} for turn in row["prompt"]), "a turn has other keys")
            json.dumps(row, ensure_ascii=False).encode()  # everything that is kept is text
            validate.prompt_key(row["prompt"])
    json.loads(formats.extra_of(values, frozenset(), "f, row 1"))


def config(data: bytes) -> None:
    """YAML or flags to the values of one command; what a comparison makes of them."""
    if len(data) < 2:
        return
    name = list(seeds.SCHEMAS)[data[0] % len(seeds.SCHEMAS)]
    schema = seeds.SCHEMAS[name]
    if data[1] % 2 == 0:
        path = _FOLDER / "run.yaml"
        path.write_bytes(data[2:])
        values = schema.resolve(str(path), {})
    else:
        source = atheris.FuzzedDataProvider(data[2:])
        flags = {
            _pick(source, list(schema.specs)): _value(source, 2)
            for _ in range(source.ConsumeIntInRange(0, 3))
        }
        _methods(source)
        values = schema.resolve(None, flags)
    for option, spec in schema.specs.items():
        _expect(option not in values or type(values[option]) is spec.type, f"{option} has another type")
    if "select" in values:
        parse_selection(values["select"], 100)
        Weighting(values["select"], values["eta"], values["rho"], values["weight_floor"])
    if name == "compare":
        make_plan(values)


def _methods(source: Any) -> None:
    given = {_pick(source, _METHOD_KEYS): _value(source, 1) for _ in range(source.ConsumeIntInRange(0, 3))}
    if source.ConsumeBool():
        given["method"] = _pick(source, list(METHODS))
    with suppress(UserError):
        parse_methods([given, _value(source, 1)] if source.ConsumeBool() else [given], "npo")


def files(data: bytes) -> None:
    """A file of some kind, read for some role, and checked where it can be read."""
    if len(data) < 2:
        return
    kind = seeds.KINDS[data[0] % len(seeds.KINDS)]
    role = list(LOADERS)[data[1] % len(LOADERS)]
    path = _FOLDER / f"data.{kind}"
    path.write_bytes(data[2:])
    try:
        dataset = LOADERS[role](path)
        if role != "prompts":
            given: dict[str, Any] = {role: dataset}
            validate.check_data(**given, files={role: str(path)}, token_limit=None, count_tokens=None)
        _expect(dataset["row"][:] == list(range(len(dataset))), "rows are not numbered")
    except UserError as fault:
        _expect("data." in str(fault), "the message does not name the file")
    finally:
        path.unlink(missing_ok=True)
        _forget_rows()


def _forget_rows() -> None:
    """Removes what the loader wrote: ten thousand files would fill the disk."""
    from u2a.data import scratch

    folder = scratch._workspace(os.getpid())
    for path in sorted(Path(folder).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _decoded(data: bytes) -> Any:
    try:
        return reading.decode_json(data.decode("utf-8", "replace"), "f, row 1")
    except UserError:
        return None


def _object(source: Any) -> dict[str, Any]:
    return {_pick(source, KEYS): _value(source, 3) for _ in range(source.ConsumeIntInRange(0, 5))}


def _value(source: Any, depth: int) -> Any:
    kind = source.ConsumeIntInRange(0, 13 if depth else 9)
    if kind >= 12:
        return {
            _pick(source, ("role", "content", "from", "value", "a")): _value(source, depth - 1)
            for _ in range(2)
        }
    if kind >= 10:
        return [_value(source, depth - 1) for _ in range(source.ConsumeIntInRange(0, 3))]
    if kind == 9:
        return 1 << source.ConsumeIntInRange(0, 20_000)
    simple: tuple[Callable[[], Any], ...] = (
        lambda: None,
        source.ConsumeBool,
        lambda: source.ConsumeIntInRange(-2, 300),
        lambda: source.ConsumeInt(9),
        source.ConsumeFloat,
        lambda: source.ConsumeUnicode(12),  # half surrogate pairs among them
        lambda: source.ConsumeUnicodeNoSurrogates(40),
        lambda: _pick(source, ("user", "assistant", "system", "human", "gpt", "A", "", "30%", "1e-4", "npo")),
        lambda: source.ConsumeBytes(4).decode("latin-1"),
    )
    return simple[kind]()


def _pick(source: Any, names: Any) -> Any:
    return names[source.ConsumeIntInRange(0, len(names) - 1)]


def _expect(held: bool, otherwise: str) -> None:
    if not held:
        raise AssertionError(otherwise)


TARGETS: dict[str, Callable[[bytes], None]] = {"rows": rows, "config": config, "files": files}
"""Name -> target."""
