"""`--config FILE`: options from YAML."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from .parameters import Names
from .wording import KEYWORDS


def read_config(path: str, command: click.Command, commands: Mapping[str, click.Command]) -> dict[str, Any]:
    """Values of a command's options, as click's default map takes them.

    Keys are options of the command; or names of commands, each with its options, and beside them options that several
    commands share.

    Raises:
        click.BadParameter: no YAML, an option that no command has or that stands there twice, a value that YAML reads
            as something else.
    """
    values = _read_yaml(path)
    known = _parameters(command)
    everywhere = {name for one in commands.values() for name in _parameters(one)}
    empty = {key for key, value in values.items() if value is None and key not in everywhere}
    sections = {k: v or {} for k, v in values.items() if k in commands and (k in empty or isinstance(v, Mapping))}
    beside = {key: value for key, value in values.items() if key not in sections}
    for name in (commands.keys() - everywhere) & beside.keys():
        got = beside[name]
        raise click.BadParameter(f"{path}: {name} is a section: expected lines such as `seed: 1` below it, got {got!r}")
    if sections:
        _check_keys(beside, everywhere, f"{path}: no command has", commands)
        options = {key: value for key, value in beside.items() if key in known}
    else:
        _check_keys(beside, set(known), f"{path}: {command.name} has no", commands)
        options = beside
    for name, section in sections.items():
        given = {_option_name(key): value for key, value in section.items()}
        _check_keys(given, set(_parameters(commands[name])), f"{path}: {name} has no")
        options |= given if name == command.name else {}
    return {name: _yaml_value(known[name], value) for name, value in options.items()}


# --- details ----------------------------------------------------------------------------------------------------------


def _read_yaml(path: str) -> dict[str, Any]:
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        _check_twice(yaml.compose(text, yaml.SafeLoader), path)
        values = yaml.safe_load(text) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise click.BadParameter(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise click.BadParameter(f"{path} holds no options: expected lines such as `seed: 1`")
    return {_option_name(key): value for key, value in values.items()}


def _option_name(key: object) -> str:
    return str(key).replace("-", "_")


def _check_twice(node: Any, path: str) -> None:
    """Of a key that stands twice YAML would silently take the last value."""
    seen = set[str]()
    for key, value in node.value if getattr(node, "id", "") == "mapping" else ():
        name = _option_name(key.value)
        if name in seen:
            raise click.BadParameter(f"{path} has {key.value!r} twice, again in line {key.start_mark.line + 1}")
        seen.add(name)
        _check_twice(value, path)


def _parameters(command: click.Command) -> dict[str, click.Parameter]:
    """What a YAML file may set, by name."""
    return {str(p.name): p for p in command.params if p.name != "config"}


def _check_keys(given: Iterable[str], known: set[str], what: str, sections: Iterable[str] = ()) -> None:
    for key in given:
        if key not in known:
            raise click.BadParameter(f"{what} option {key!r}. {_hint(key, known, sections)}")


def _hint(key: str, known: set[str], sections: Iterable[str]) -> str:
    if key.startswith("no_") and key[3:] in known:
        return f"Write `{key[3:]}: false`."
    if KEYWORDS.get(key) in known:
        return f"Did you mean {KEYWORDS[key]}?"
    near = difflib.get_close_matches(key.lstrip("_"), sorted({*known, *sections}), 2, 0.7)
    return f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(sorted(known))}."


def _yaml_value(param: click.Parameter, value: Any) -> Any:
    """As click reads it: text for one value, a list for options that repeat, commas for lists in one option."""
    if value is None:
        raise click.BadParameter(f"{param.name} is empty: leave the line out, or write none where that is a choice")
    if isinstance(value, bool) and getattr(param, "is_flag", False):
        return value
    several = getattr(param, "multiple", False)
    if isinstance(value, (Mapping, list)) and not (several or (isinstance(param.type, Names) and type(value) is list)):
        raise click.BadParameter(f"{param.name} takes one value, got {value!r}")
    if isinstance(value, Mapping):
        value = [f"{_yaml_text(param, key)}={_yaml_text(param, item)}" for key, item in value.items()]
    texts = [_yaml_text(param, item) for item in (value if isinstance(value, list) else [value])]
    return texts if several else ",".join(texts)


def _yaml_text(param: click.Parameter, value: Any) -> str:
    """One value, where YAML has not made something else of it."""
    if value is None or isinstance(value, (bool, list, Mapping)):
        got = {True: "true (also yes, on)", False: "false (also no, off)", None: "empty"}
        name = got[value] if value is None or isinstance(value, bool) else repr(value)
        raise click.BadParameter(f"{param.name}: YAML reads a value as {name}: expected a text or number; try quotes")
    return str(value)
