"""The one way from YAML and flags to options: names, types, bounds, and parts of the user's own.

Every option has one flat name, the same in YAML (`kl_budget`) and as a flag (`--kl-budget`).
"""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from u2a.config import refusal
from u2a.plugins import Named, installed, named_parts
from u2a.storage.plain_yaml import plain_values
from u2a.types import UserError, shown


@dataclass(frozen=True)
class OptionSpec:
    """One option as YAML, flags and docs see it."""

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...]
    owner: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    flag_only: bool = False
    number: bool = False

    @property
    def flag(self) -> str:
        """`kl_budget` -> `--kl-budget`."""
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True)
class Registry:
    """A choice among classes whose fields are options: `name` is the option that chooses.

    `group` of entry points: others may bring classes (`u2a.plugins`). `several` may be chosen, by commas, and
    all have their options; else the chosen one alone has, and "" chooses none where `optional`.
    """

    name: str
    classes: dict[str, Any]
    prefix: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    several: bool = False
    optional: bool = False

    def owner(self, cls: type) -> str:
        """Options of the same owner may share a name."""
        return f"{cls.__module__}.{cls.__qualname__}" if self.several else self.name


class Schema:
    """The options of one command.

    Args:
        parts: option dataclasses.
        registries: choices whose classes bring options of their own.
        aside: keys that only a YAML file can hold, such as lists, passed on as they are; None = not given.
    """

    def __init__(
        self, parts: Sequence[type], registries: Sequence[Registry] = (), aside: Sequence[str] = ()
    ) -> None:
        self.parts, self.registries, self.aside = tuple(parts), tuple(registries), tuple(aside)
        self.specs: dict[str, OptionSpec] = {}
        for part in parts:
            self._add(part, part.__name__, "")
        for registry in registries:
            for cls in registry.classes.values():
                self._add(cls, registry.owner(cls), registry.prefix)

    def _add(self, cls: type, owner: str, prefix: str, *, instead: bool = False) -> None:
        """Adds a class's options; `instead` of those of the same owner and name."""
        hints = typing.get_type_hints(cls) if not prefix and owner in {p.__name__ for p in self.parts} else {}
        for f in dataclasses.fields(cls):
            if "help" not in f.metadata:
                continue
            name = prefix + f.name
            kind = _plain_type(hints.get(f.name, f.type))
            more = {
                key: f.metadata[key]
                for key in ("choices", "least", "above", "most", "flag_only", "number")
                if key in f.metadata
            }
            spec = OptionSpec(
                name, kind, f.default, f.metadata["help"], owner=owner, **{"choices": (), **more}
            )
            if instead and name in self.specs and self.specs[name].owner == owner:
                self.specs[name] = spec
            known = self.specs.setdefault(name, spec)
            if known.owner != owner or known.type is not kind:
                raise ValueError(f"two options are called {name}: in {known.owner} and in {owner}")

    def with_parts(self, config_file: str | None, flags: Mapping[str, Any]) -> Schema:
        """With the options of the user's own parts that the YAML file and the flags name, which it loads.

        Raises:
            UserError: unreadable YAML; as `named_parts`; or an option of a part has a name that is taken, or
                no plain type.
        """
        return self._extended(_read_yaml(config_file) if config_file else {}, flags, config_file or "")

    def _extended(self, content: Mapping[str, Any], flags: Mapping[str, Any], file: str) -> Schema:
        found = named_parts(self.registries, content, flags, file)
        schema = copy.copy(self) if found else self
        if found:
            schema.specs = dict(self.specs)
        for named in found:
            schema._add_part(named)
        return schema

    def _add_part(self, named: Named) -> None:
        registry: Registry = named.choice
        try:
            self._add(named.part, registry.owner(named.part), registry.prefix, instead=True)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"--{registry.name} {named.name[:80]}: an option of {named.part.__name__} cannot be one "
                f"({error}); options have names of their own and are text, whole numbers, numbers or switches"
            ) from None

    def resolve(
        self,
        config_file: str | None,
        flags: Mapping[str, Any],
        other: Callable[[list[str]], str] = lambda _: "",
    ) -> dict[str, Any]:
        """Defaults, overridden by the YAML file, overridden by flags that were given (not None).

        Options of a class that was not chosen are left out of the result. Loads parts of the user's own.

        Args:
            other: what is said of unknown keys that mean something to another command; "" of none such.

        Raises:
            UserError: unreadable YAML, unknown key, wrong type or choice, an option that the chosen loss,
                objective or curvature does not have, or a part of the user's own that is unusable.
        """
        given = _read_yaml(config_file) if config_file else {}
        schema = self._extended(given, flags, config_file or "")
        _refuse_unknown(given, [*schema.specs, *schema.aside], config_file or "", other)
        return schema._resolved(given, flags, config_file)

    def _resolved(
        self, given: dict[str, Any], flags: Mapping[str, Any], config_file: str | None
    ) -> dict[str, Any]:
        for name, spec in self.specs.items():
            alone = spec.flag_only and name in given and not flags.get(name)
            if alone and given[name] != spec.default:
                raise UserError(f"{name} in {config_file} counts only together with the flag {spec.flag}")
        given.update({key: value for key, value in flags.items() if value is not None})
        source = f"{config_file} or a flag" if config_file else "a flag"
        values = {
            name: self._checked(spec, given[name], source) if name in given else spec.default
            for name, spec in self.specs.items()
        }
        for registry in self.registries:
            if not registry.several:
                self._keep_chosen(registry, values, given)
        return {**values, **{key: given.get(key) for key in self.aside}}

    def load_parts(self, values: Mapping[str, Any]) -> None:
        """Loads the user's own parts that resolved options name: in another process than resolved them."""
        named_parts(self.registries, {}, values, "")

    def _keep_chosen(self, registry: Registry, values: dict[str, Any], given: Mapping[str, Any]) -> None:
        chosen = registry.aliases.get(values[registry.name], values[registry.name])
        none = registry.optional and not chosen
        if chosen not in registry.classes and not none:
            raise UserError(f"--{registry.name} {chosen[:80]}: unknown; take one of {_offered(registry)}")
        own = {registry.prefix + n for n in ([] if none else _option_names(registry.classes[chosen]))}
        for cls in registry.classes.values():
            for name in (registry.prefix + n for n in _option_names(cls)):
                if name in own or name not in values:
                    continue
                if name in given:
                    raise UserError(
                        f"{self.specs[name].flag} means nothing for --{registry.name} {chosen}; leave it out"
                    )
                del values[name]

    def _checked(self, spec: OptionSpec, value: Any, source: str) -> Any:
        value = _as_number_or_text(spec, value)
        if type(value) is not spec.type:
            raise UserError(
                f"{spec.name} must be {_TYPE_WORDS[spec.type]}, got {shown(value)} ({type(value).__name__}) "
                f"in {source}"
            )
        if spec.type is str and not _is_text(str(value)):
            raise UserError(
                f"{spec.flag} {shown(value)}: holds a character that no text or file name can hold"
            )
        if wrong := refusal(value, choices=spec.choices, least=spec.least, above=spec.above, most=spec.most):
            raise UserError(f"{spec.flag} {value if spec.type is str else shown(value)}: {wrong}"[:400])
        return value

    def part(self, cls: type, values: Mapping[str, Any]) -> Any:
        """The option dataclass `cls` filled from resolved values."""
        return cls(**{name: values[name] for name in _option_names(cls)})

    def chosen_options(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Constructor arguments of the class chosen in the registry `name`."""
        registry = next(r for r in self.registries if r.name == name)
        chosen = registry.aliases.get(values[name], values[name])
        return {n: values[registry.prefix + n] for n in _option_names(registry.classes[chosen])}


def _offered(registry: Registry) -> str:
    others = installed(registry.group) if registry.group else []
    return ", ".join(dict.fromkeys([*registry.classes, *registry.aliases, *others])) or "a path, module:Class"


_TYPE_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _as_number_or_text(spec: OptionSpec, value: Any) -> Any:
    """A whole number where a fraction is wanted, 1e-4, which YAML reads as text, and a bare count, as what
    the option takes; everything else as it is, for the check of types to refuse."""
    try:
        if spec.type is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            return float(value)
        if spec.name in ("select", "subset_share") and type(value) is int:
            return str(value)
        if spec.number and type(value) in (int, float):
            return str(value)
    except (ValueError, OverflowError):  # not a number, or one too large
        pass
    return value


def _is_text(value: str) -> bool:
    """Without NUL and half surrogate pairs, at which files and folders of that name fail."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _option_names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if "help" in f.metadata]


def _plain_type(annotation: Any) -> type:
    """The type behind an annotation, which `from __future__ import annotations` may have left as text."""
    for kind in _TYPE_WORDS:
        if annotation in (kind, kind.__name__):
            return kind
    raise TypeError(f"options have one plain type, not {annotation}")


def _read_yaml(path: str) -> dict[str, Any]:
    file = Path(path)
    try:
        content = plain_values(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--config {path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--config {path}: not readable YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values, one option a line, e.g. `loss: npo`")
    return content


def _refuse_unknown(
    content: Mapping[str, Any], known: Sequence[str], path: str, other: Callable[[list[str]], str]
) -> None:
    unknown = [key for key in content if key not in known]
    if not unknown:
        return
    if elsewhere := other([key for key in unknown if isinstance(key, str)]):
        raise UserError(f"{path}: {elsewhere}")
    near = _nearest(unknown[0], known) if isinstance(unknown[0], str) and len(unknown[0]) < 80 else ""
    raise UserError(f"{path}: unknown key {shown(unknown[0])}{near}; `--help` lists the options")


def _nearest(name: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
