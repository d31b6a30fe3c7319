"""What fuzzing starts from: a few valid inputs of every kind, made in code, and words to mutate with."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from u2a.commands import schemas
from u2a.data.formats import READ_KEYS, ROLES
from u2a.data.reading import READERS

KINDS = tuple(dict.fromkeys([*READERS, "jsonl.gz", "json.gz", "csv.gz", "jsonl.zip", "zip", "gz"]))
"""Endings of the files that are fuzzed; those that are not read must be refused."""
SCHEMAS = {
    "align": schemas.ALIGN,
    "impact": schemas.IMPACT,
    "check": schemas.CHECK,
    "split": schemas.SPLIT,
    "verify": schemas.VERIFY,
    "evaluate": schemas.EVALUATE,
    "compare": schemas.COMPARE,
    "demo": schemas.DEMO,
}
"""Schemas of all commands that take options."""
_TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "Q", "completion": "A", "label": False, "weight": 2},
    {"prompt": "Q", "response": "A", "id": "one", "source": {"a": [1, None]}},
    {"prompt": "Q", "chosen": "A", "rejected": "B"},
    {"prompt": _TURNS[:1], "chosen": _TURNS[1:], "rejected": _TURNS[1:]},
    {"chosen": _TURNS, "rejected": _TURNS},
    {"messages": _TURNS, "system": "S"},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "kto_tag": True},
    {"instruction": "Q", "input": "more", "output": "A"},
    {"prompt": "Q", "response_0": "A", "response_1": "B", "is_response_0_safe": True}
    | {"is_response_1_safe": False, "safer_response_id": 0},
    {"text": "A"},
)
"""A row of each format."""
YAML = (
    "loss: npo\nbeta: 0.1\nlearning_rate: 1e-4\nselect: 30%\nmerge: true\n",
    "methods:\n  - u2a\n  - {method: dpo, name: mine, beta: 0.2}\nrates: 1e-4,2e-4\nseeds: 3\n",
    "curvature: ggn\ncurvature_damping: 0.1\nobjective: nll\nseed: 0x10\nnegatives: 'a.jsonl'\n",
    "a: &a {b: 1}\nc: {<<: *a}\nwhen: 2001-01-01 00:00:00\nn: !!int '1'\nx: .inf\n",
)
"""Configurations, valid and nearly so."""
_JSON_WORDS = [
    "null",
    "true",
    "false",
    "NaN",
    "-Infinity",
    "1e999",
    "\\ud800",
    "\\u0000",
    '{"',
    '":',
    '"},',
    "[]",
]
_YAML_WORDS = [
    "!!int",
    "!!float",
    "!!bool",
    "!!timestamp",
    "!!binary",
    "&a",
    "*a",
    "<<:",
    "0x",
    ".nan",
    "? ",
    "1e4",
]


def words() -> list[bytes]:
    """Column names, roles, option names, and what json and YAML are made of."""
    names = [
        *READ_KEYS,
        *ROLES,
        "role",
        "content",
        "from",
        "value",
        "safer_response_id",
        "is_response_0_safe",
    ]
    options = {name for schema in SCHEMAS.values() for name in schema.specs}
    found = {*names, *options, *_JSON_WORDS, *_YAML_WORDS, "methods", "method", "name"}
    return [word.encode() for word in sorted(found)] + [
        b"\xef\xbb\xbf",
        b"PAR1",
        b"\x1f\x8b\x08",
        b"PK\x03\x04",
    ]


def dictionary() -> str:
    """`words` in libFuzzer's format."""
    lines = ("".join(f"\\x{byte:02x}" for byte in word) for word in words())
    return "".join(f'"{line}"\n' for line in lines)


def row_inputs() -> list[bytes]:
    """For the target `rows`: a leading byte chooses json text (even) or a row built from the bytes (odd)."""
    texts = [b"\x00" + json.dumps(row).encode() for row in ROWS]
    return [*texts, *(b"\x01" + bytes(range(start, start + 64)) for start in range(0, 192, 24))]


def config_inputs() -> list[bytes]:
    """For the target `config`: the command, then YAML (even) or flags built from the bytes (odd)."""
    texts = [bytes([k, 0]) + text.encode() for k in range(len(SCHEMAS)) for text in YAML]
    for k, schema in enumerate(SCHEMAS.values()):
        names = list(schema.specs)
        for start in range(0, len(names), 8):
            defaults = {name: schema.specs[name].default for name in names[start : start + 8]}
            texts.append(bytes([k, 0]) + yaml.safe_dump(defaults).encode())
    return [*texts, *(bytes([k, 1, *range(40)]) for k in range(len(SCHEMAS)))]


def file_inputs() -> list[bytes]:
    """For the target `files`: the kind, the role, then the file's bytes."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    contents = {
        "jsonl": lines,
        "ndjson": lines,
        "json": json.dumps(ROWS).encode(),
        "csv": b'prompt,completion,label,weight\nQ,"A\nB",true,1.5\nQ,"",false,0\n',
        "parquet": _parquet(ROWS[:3]),
        "arrow": _arrow(ROWS[:3]),
        "txt": b"one\n\ntwo\r\nthree",
        "jsonl.gz": gzip.compress(lines, mtime=0),
        "json.gz": gzip.compress(json.dumps(ROWS).encode(), mtime=0),
        "csv.gz": gzip.compress(b"text\nA\n", mtime=0),
        "gz": gzip.compress(lines, mtime=0),
        "zip": _zip("a.jsonl", lines),
        "jsonl.zip": _zip("a.jsonl", lines),
    }
    whole = [
        bytes([KINDS.index(kind), role]) + contents[kind]
        for kind in KINDS
        if kind in contents
        for role in range(4)
    ]
    single = [
        bytes([KINDS.index("jsonl"), role]) + json.dumps(row).encode() for row in ROWS for role in range(4)
    ]
    tables = [bytes([KINDS.index("parquet"), 0]) + _parquet([row]) for row in ROWS]
    return [*whole, *single, *tables]


def _parquet(rows: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), stream)
    return stream.getvalue()


def _arrow(rows: Any) -> bytes:
    sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(list(rows))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _zip(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


INPUTS = {"rows": row_inputs, "config": config_inputs, "files": file_inputs}
"""Target -> its first inputs."""
