"""The commented settings file that `paretopress init` writes: every key, with what it means and its default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from paretopress.settings import Document
from paretopress.settings_words import WORDS

# Of keys whose default depends on others, or that have none.
EXAMPLES: dict[str, Any] = {
    "budgets": {"latency": "-50%", "size": "<=1MB"}, "max_drop": "1pp", "search.trials": 300, "search.time": "5m",
    "search.finalists": 22, "search.workers": 2, "search.ray": "local", "timing.runs": 200,
    "search.executor": "tune", "search.worker_resources": "cpu=1", "search.storage_path": "runs/tune",
    "search.warm_start": "resnet.recipe.json",
    "space.halves": ["fp16"], "space.clusters": [4], "space.binary": [1], "space.sparsity": [0.5, "2:4"],
    "space.exclude": ["head.*"], "space.pin": {"stem/weights": {"weights": 8, "activations": 8}},
    "distillation.steps": 1500, "distillation.batch_size": 64, "distillation.learning_rate": 0.03,
    "distillation.temperature": 4.0, "distillation.features": 10.0, "distillation.narrowed": True,
    "distillation.held_out": 0.125, "distillation.blocks": 0.0, "distillation.bfloat16": False,
    "distillation.augmentation": {"mixup": 0.5, "noise": 0.5, "difference": 0.5, "shift": 0.0, "mirror": 0.0},
}
HEADER = """# yaml-language-server: $schema={schema}
# Settings of a search: paretopress search {name} --model PKG.MOD:FUNCTION --data PKG.MOD:FUNCTION
# Keys that begin with # are at their defaults or examples; take the # away to set one. Model and data are functions
# that you name on the command line: a settings file names no code.
"""


def starter_text(name: str, schema: str, given: Mapping[str, Any] | None = None) -> str:
    """Return a commented settings file.

    Args:
        name: Of the file, for the command in its header.
        schema: Where editors find the JSON Schema: a path relative to the file, or an address.
        given: What is set, as a settings document; everything else is commented out.
    """
    lines = HEADER.format(schema=schema, name=name).splitlines()
    lines += _section(Document, dict(given or {}), "", "")
    return "\n".join(lines) + "\n"


def _section(model: type[BaseModel], given: Mapping[str, Any], prefix: str, indent: str) -> Iterator[str]:
    for key, field in model.model_fields.items():
        path, kind = f"{prefix}{key}", field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and path not in EXAMPLES:
            own = given.get(key) or {}
            yield from ("", f"# {WORDS.get(path, '')}")
            yield f"{key}:" if own else f"#{key}:"
            yield from _section(kind, own, f"{path}.", f"{indent}  ")
            continue
        if not prefix:
            yield ""
        allowed = _allowed(kind)
        yield f"{indent}# {WORDS.get(path, '')}" + (f" One of {', '.join(allowed)}." if allowed else "")
        chosen = key in given
        value = given[key] if chosen else EXAMPLES.get(path, field.default)
        yield f"{indent}{'' if chosen else '#'}{key}: {_flow(value)}"


def _allowed(kind: Any) -> list[str]:  # noqa: ANN401 - a type annotation
    """The values that a key may have, where they are few and named."""
    from typing import Literal, get_args, get_origin

    inner = get_args(kind)[0] if get_origin(kind) is list else kind
    values = [str(value) for value in get_args(inner)] if get_origin(inner) is Literal else []
    return values if len(values) > 1 else []


def _flow(value: Any) -> str:  # noqa: ANN401 - any YAML value
    """A value on one line."""
    if isinstance(value, str):
        return f'"{value}"' if not value.replace("_", "").isalnum() else value
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False)
    return text.removesuffix("...\n").strip()
