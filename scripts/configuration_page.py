"""The page of docs/ about the configuration, made from the settings' model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from app.settings import FOREIGN, Settings, variable

NOTE = "<!-- Made by `make docs` from the code; change it there. -->\n\n"
INTRODUCTION = """# Configuration

Nothing has to be configured. What can be is a key of one file in [TOML](https://toml.io)
(`nantucket COMMAND --config nantucket.toml`, or the variable `NANTUCKET_CONFIG`), and a variable of the environment,
and for what one changes from call to call an option of the command line ([commands](commands.md)). Where a key is given
twice, the option wins, then the environment, then the file.

`demo` and `bench` run on settings of their own, so that they never write to somebody's bus or page somebody's
receivers, and `replay` needs none: these three take no `--config`.

A variable is the key in capitals behind `NANTUCKET_`, with two underscores for the point. Receivers can be given that
way too (`NANTUCKET_RECEIVERS__ONCALL__URL`); their names are then in small letters.

An unknown key, a wrong type or a value out of range ends the command with status 2 and a message that names the key,
the value and what is allowed. Secrets are never shown. They do not belong on a command line either, where a list of
processes shows them: put them into the file (`chmod 600`) or the environment.

```toml
state = "/var/lib/nantucket"

[serve]
port = 8580

[receivers.oncall]
url = "https://example.org/hooks/pages"
secret = "whsec_..."
```
"""
MACHINES_OWN = {
    "state": "`/var/lib/nantucket` for root, else `nantucket` in `$XDG_STATE_HOME` (`~/.local/state`)",
    "node": "this machine's host name",
    "receivers": "none",
    "detect.thresholds.NAME.SETTING": "the detector's own",
}
"""Defaults that differ from machine to machine, in words."""


class Key(NamedTuple):
    """One key: its place with dots, and what its schema says."""

    place: str
    schema: dict[str, Any]


def keys() -> Iterator[Key]:
    """Every key, in the order of the model; a receiver's under ``receivers.NAME``."""
    whole = Settings.model_json_schema()
    yield from _keys("", whole, whole["$defs"])


def _keys(prefix: str, section: dict[str, Any], sections: dict[str, Any]) -> Iterator[Key]:
    for name, schema in section["properties"].items():
        if schema.get("additionalProperties", {}).get("type") == "object":
            numbers = schema["additionalProperties"]["additionalProperties"]
            yield Key(f"{prefix}{name}.NAME.SETTING", {**schema, **numbers, "required": False, "default": None})
            continue
        below = schema.get("$ref")
        named = schema.get("additionalProperties", {}).get("$ref")
        if below or named:
            place = f"{prefix}{name}." if below else f"{prefix}{name}.NAME."
            yield from _keys(place, sections[(below or named).rsplit("/", 1)[1]], sections)
        else:
            required = name in section.get("required", ())
            yield Key(prefix + name, {**schema, "required": required})


def configuration_page() -> str:
    """Every key with its variable, what is allowed, its default and its meaning."""
    lines = [NOTE + INTRODUCTION, "| key | variable | allowed | default | meaning |", "|---|---|---|---|---|"]
    for key in keys():
        cells = (f"`{key.place}`", f"`{variable(key.place)}`", _allowed(key.schema), _default(key))
        lines.append(f"| {' | '.join(cells)} | {key.schema['description']} |")
    foreign = ", ".join(f"`{name}`" for name in sorted(FOREIGN - {"NANTUCKET_CONFIG"}))
    lines += ["", f"Of the training job, and no keys: {foreign} (see [the SDK](sdk.md))."]
    return "\n".join(lines) + "\n"


def _allowed(schema: dict[str, Any]) -> str:
    schema = next((one for one in schema.get("anyOf", ()) if one["type"] != "null"), schema)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema["type"] == "array":
        return "list of " + _allowed(schema["items"])
    bounds = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"))
    limits = [f"{word} {schema[name]:g}" for name, word in bounds if name in schema]
    words = {
        "boolean": "true or false",
        "integer": "whole number",
        "number": "number",
        "string": "secret text" if "writeOnly" in schema else "text",
    }
    return " ".join([words[schema["type"]], *limits])


def _default(key: Key) -> str:
    if key.schema["required"]:
        return "must be given"
    if key.place in MACHINES_OWN:
        return MACHINES_OWN[key.place]
    default = key.schema["default"]
    if isinstance(default, list):
        return ", ".join(f"`{item}`" for item in default) or "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return "none" if default is None else f"`{default}`"
