"""`u2a plan`: what would it cost on so many negatives, with a model of that size, on these devices?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from u2a.commands.terminal import give, print_table, say
from u2a.cost_model import Fleet, Workload
from u2a.types import UserError


def run(values: Mapping[str, Any]) -> int:
    """Prints the plan; nothing is loaded and nothing written."""
    values = {**values, **{name: count_of(name, values[name]) for name in _COUNTS}}
    for name in ("model_params", "negatives"):
        if values[name] == 0:
            raise UserError(f"--{name.replace('_', '-')} is missing: {_COUNTS[name]}")
    workload, fleet = workload_of(values), fleet_of(values)
    found = document(workload, fleet)
    give(**found)
    rows = [
        [name, f"{one['flops']:.2e}", time_of(one["hours"]), money(one["cost"])]
        for name, one in found["phases"].items()
    ]
    total = found["total"]
    rows.append(["in all", f"{total['flops']:.2e}", time_of(total["hours"]), money(total["cost"])])
    print_table("Computing", ["phase", "operations", "time", "cost"], rows)
    kept = {**found["memory"], **{f"{name}, on disk": size for name, size in found["disk"].items()}}
    print_table("Bytes", ["what", "size"], [[name, size_of(size)] for name, size in kept.items()])
    price = f", {money(total['cost'])}" if fleet.price else ""
    say(f"In all {total['flops']:.2e} operations, {time_of(total['hours'])}{price}.", essential=True)
    for line in found["remarks"]:
        say(line, essential=True)
    return 0


_COUNTS = {
    "model_params": "a number such as 8e9, 8B or 135M",
    "negatives": "how many rows: `u2a plan` takes numbers, such as 1e6 or 20K",
    "proxy_params": "a number such as 135M; 0 = none",
}
"""Options that are large numbers, and what they take."""
_THOUSANDS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def count_of(name: str, text: str) -> float:
    """`8B` -> 8e9; 0 where nothing is given.

    Raises:
        UserError: it is no such number.
    """
    text = text.strip() or "0"
    factor = _THOUSANDS.get(text[-1].lower())
    try:
        found = float(text) if factor is None else float(text[:-1]) * factor
    except ValueError:
        found = -1.0
    if not math.isfinite(found) or found < 0:
        raise UserError(f"--{name.replace('_', '-')} {text[:80]}: {_COUNTS[name]}")
    return found


def workload_of(values: Mapping[str, Any]) -> Workload:
    """What the options describe."""
    text = str(values["select"]).strip()
    try:
        select = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        select = -1.0
    wrong = select > 1 if text.endswith("%") else select < 1 or select % 1
    if select <= 0 or wrong:
        raise UserError(f"--select {text}: a percentage such as 50%, or a number of negatives")
    scoring = "exact" if values["scoring"] == "auto" else values["scoring"]
    return Workload(
        model_params=values["model_params"],
        negatives=values["negatives"],
        tokens=values["tokens"],
        validation=values["validation"],
        retain=values["retain_rows"],
        select=select if text.endswith("%") else max(select, 1 + 1e-9),
        epochs=values["epochs"],
        outer_steps=values["outer_steps"],
        measurements=values["measurements"],
        retain_term=values["retain_term"],
        scoring=scoring,
        lora_rank=values["lora_rank"],
        checkpointing=values["gradient_checkpointing"],
        batch_tokens=values["batch_tokens"],
        vocabulary=values["vocabulary"],
        proxy_params=values["proxy_params"],
        bytes_per_param=0.5 if values["quantize"] == "4bit" else values["bytes_per_param"],
    )


def fleet_of(values: Mapping[str, Any]) -> Fleet:
    """The devices that the options describe."""
    return Fleet(
        values["devices"], values["flops"], values["utilisation"], values["device_memory"], values["price"]
    )


def document(workload: Workload, fleet: Fleet) -> dict[str, Any]:
    """All figures; what `--json` prints. Operations, hours, bytes, and money where there is a price."""

    def figures_of(flops: float) -> dict[str, float | None]:
        cost = fleet.cost(flops) if fleet.price else None
        return {"flops": flops, "hours": fleet.hours(flops), "cost": cost}

    operations = workload.phases()
    phases = {name: figures_of(flops) for name, flops in operations.items()}
    total = figures_of(sum(operations.values()))
    return {
        "schema": 1,
        "phases": phases,
        "total": total,
        "memory": workload.memory(),
        "disk": workload.disk(),
        "devices_for_one_copy": fleet.devices_for(workload),
        "remarks": remarks(workload, fleet),
    }


def remarks(workload: Workload, fleet: Fleet) -> list[str]:
    """What people should know, in sentences."""
    needed, found = fleet.devices_for(workload), []
    memory = size_of(fleet.device_memory)
    if needed == 0:
        found.append(
            f"One batch does not fit a device of {memory}: take a smaller --batch-tokens or "
            "--gradient-checkpointing."
        )
    elif needed > fleet.devices:
        found.append(f"One copy of the model with its optimiser needs {needed} devices of {memory}.")
    elif needed > 1:
        found.append(f"One copy of the model needs {needed} devices of {memory}: shard it (FSDP).")
    else:
        found.append(f"The model and its optimiser fit one device of {memory}.")
    phases = workload.phases()
    share = (phases["log-probs of the negatives"] + phases["scores"]) / sum(phases.values())
    if share > 0.5:
        per = fleet.hours(phases["scores"] + phases["log-probs of the negatives"]) * 3600 / workload.negatives
        found.append(
            f"Scoring takes {share:.0%} of it, {per:.2g} s a negative over all outer steps: --outer-steps 1, "
            "--proxy-params or a sample of the negatives cut it (docs/scaling.md)."
        )
    if workload.selected * workload.epochs > 1e6:
        found.append(
            f"{workload.selected:,.0f} negatives would be unlearned in each outer step; far fewer usually "
            "do: --select takes a number."
        )
    return found


def time_of(hours: float) -> str:
    """`0.02` -> `1.2 min`."""
    if hours < 1 / 60:
        return f"{hours * 3600:.3g} s"
    if hours < 1:
        return f"{hours * 60:.3g} min"
    return f"{hours:.3g} h" if hours < 72 else f"{hours / 24:.3g} days"


def size_of(size: float) -> str:
    """`2.5e9` -> `2.5 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"


def money(cost: float | None) -> str:
    """Nothing without a price."""
    return "–" if cost is None else f"{cost:,.2f}"
