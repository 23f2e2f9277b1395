"""JSON Schemas: of the settings file, for editors, and of what every verb prints with `--json`.

The schema of the settings comes from their model, so that the two cannot differ; those of the verbs are YAML files in
`schemas/`, which share pieces as `$defs`. `python -m paretopress.json_schemas` in a checkout writes
`schemas/settings.json` and `docs/json.md` anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from paretopress.spaces.documents import parse_yaml
from paretopress.spaces.errors import ConfigError, unknown_name

DRAFT = "https://json-schema.org/draft/2020-12/schema"
SETTINGS = "settings"
FOLDER = Path(__file__).parent / "schemas"
DEFINITIONS = "definitions"
DOCUMENT = Path("docs") / "json.md"


def settings_schema() -> dict[str, Any]:
    """Return the JSON Schema of a settings file, with every key described."""
    from paretopress.settings import Document
    from paretopress.settings_words import WORDS

    schema = Document.model_json_schema()
    sections = schema.pop("$defs")
    for path, words in WORDS.items():
        holder, (*parents, key) = schema, path.split(".")
        for parent in parents:
            holder = _section(holder["properties"][parent], sections)
        if key in holder["properties"]:
            holder["properties"][key]["description"] = words
    schema |= {"title": "Settings of a Paretopress search", "description": "A settings file names no code."}
    return {"$schema": DRAFT, **_without_titles(schema), "$defs": _without_titles(sections)}


def _section(plain: Mapping[str, Any], sections: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a part of a JSON Schema
    return sections[plain["$ref"].rpartition("/")[2]]


def _without_titles(plain: Any) -> Any:  # noqa: ANN401 - any part of a JSON Schema
    """Leave out the titles that pydantic makes of names: editors would show them twice."""
    if isinstance(plain, Mapping):
        return {key: _without_titles(value) for key, value in plain.items()
                if not (key == "title" and isinstance(value, str) and value != "Settings of a Paretopress search")}
    return [_without_titles(item) for item in plain] if isinstance(plain, list) else plain


def schema_text(schema: Mapping[str, Any]) -> str:
    """Return a schema as it is shipped."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def shipped_settings_schema() -> str:
    """Return the text of the schema of settings files that is part of the package."""
    return (FOLDER / f"{SETTINGS}.json").read_text(encoding="utf-8")


def schema_names() -> list[str]:
    """Return the names of all schemas: `settings`, and verbs with `-` between their words."""
    verbs = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != DEFINITIONS)
    return [SETTINGS, *verbs]


def schema_of(name: str) -> dict[str, Any]:
    """Return a JSON Schema by name.

    Args:
        name: `settings`, or a verb whose `--json` it describes, such as `front` or `device-list`.

    Raises:
        ConfigError: An unknown name, with the nearest.
    """
    if name not in schema_names():
        raise ConfigError(unknown_name("schema", name, schema_names()))
    if name == SETTINGS:
        found: dict[str, Any] = json.loads(shipped_settings_schema())
        return found
    own, shared = _read(name), _read(DEFINITIONS)
    used: dict[str, Any] = {}
    _collect(own, shared, used)
    return {"$schema": DRAFT, **own, **({"$defs": {key: used[key] for key in sorted(used)}} if used else {})}


@cache
def _read(name: str) -> dict[str, Any]:
    path = FOLDER / f"{name}.yaml"
    found: dict[str, Any] = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    return found


def _collect(plain: object, shared: Mapping[str, Any], used: dict[str, Any]) -> None:
    """Add the shared pieces that a schema needs, and those that these need."""
    for reference in _references(plain):
        if reference not in used:
            used[reference] = shared[reference]
            _collect(shared[reference], shared, used)


def _references(plain: object) -> Iterator[str]:
    if isinstance(plain, Mapping):
        for key, value in plain.items():
            if key == "$ref":
                yield str(value).rpartition("/")[2]
            else:
                yield from _references(value)
    elif isinstance(plain, list):
        for item in plain:
            yield from _references(item)


def json_page() -> str:
    """Return the text of `docs/json.md`: every key of every document, from the schemas."""
    parts = [INTRODUCTION]
    for name in schema_names()[1:]:
        schema = _read(name)
        title = schema["description"]
        verb = name.replace("-", " ", 1) if name.startswith(("device-", "policy-")) else name
        heading = "search --dry-run" if name == "search-dry-run" else verb
        whole = f" The document is {_type(schema)}." if "$ref" in schema else ""
        parts.append(f"## `{heading}`\n\n{title}{whole}\n" + _table(schema))
    parts.append("## Shared pieces\n")
    for name, piece in _read(DEFINITIONS).items():
        parts.append(f"### {name}\n\n{piece.get('description', '')} Type: {_type(piece)}.\n".replace("\n ", "\n")
                     + _table(piece))
    return "\n".join(parts)


INTRODUCTION = """# What `--json` prints

<!-- Written by `python -m paretopress.json_schemas` from `paretopress/schemas/`; edit these. -->

Every verb prints one JSON document on stdout with `--json`; progress and messages go to stderr. `paretopress schema
NAME` prints the JSON Schema of each (`paretopress schema` lists them), and `paretopress schema settings` that of the
settings file. Documents may get further keys in later versions; a key never changes its meaning without `schema` rising
where a document has it. Numbers that are not known are null, never 0 or NaN.
"""


def _table(schema: Mapping[str, Any]) -> str:
    rows = list(_rows(schema, ""))
    if not rows:
        return ""
    lines = ["", "| key | type | meaning |", "|---|---|---|"]
    lines += [f"| `{path}` | {kind} | {words} |" for path, kind, words in rows]
    return "\n".join(lines) + "\n"


def _rows(schema: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    inner = schema.get("items") if "items" in schema else schema
    prefix += "[]." if "items" in schema and prefix else ""
    if not isinstance(inner, Mapping):
        return
    for key, value in (inner.get("properties") or {}).items():
        path = f"{prefix.rstrip('.') + '.' if prefix else ''}{key}"
        yield path, _type(value), str(value.get("description", "")).replace("|", "\\|")
        yield from _rows(value, path)
    more = inner.get("additionalProperties")
    if isinstance(more, Mapping) and more.get("properties"):
        yield from _rows(more, f"{prefix.rstrip('.') + '.' if prefix else ''}NAME")


def _type(piece: Mapping[str, Any]) -> str:
    if "$ref" in piece:
        name = str(piece["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name})"
    if "enum" in piece:
        return ", ".join("null" if value is None else str(value) for value in piece["enum"])
    if "const" in piece:
        return str(piece["const"])
    if "anyOf" in piece:
        return " or ".join(_type(one) for one in piece["anyOf"])
    kinds = piece.get("type", "any")
    names = [str(kind) for kind in (kinds if isinstance(kinds, list) else [kinds])]
    if "items" in piece and "array" in names:
        names[names.index("array")] = f"list of {_type(piece['items'])}"
    return " or ".join(names)


def main(root: Path | None = None) -> None:
    """Write the shipped schema and the page of a checkout anew.

    Args:
        root: The checkout; by default the folder around the package.
    """
    from paretopress.spaces.documents import write_text

    folder = root or Path(__file__).resolve().parent.parent
    write_text(FOLDER / f"{SETTINGS}.json", schema_text(settings_schema()))
    write_text(folder / DOCUMENT, json_page())


if __name__ == "__main__":
    main()
