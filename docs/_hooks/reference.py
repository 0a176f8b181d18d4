"""A mkdocs hook: it writes the generated reference pages from the code when the site is built.

A page asks for its content by a line `<!-- GENERATED: name -->`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "pipelines", "trainers", "cluster", "pairloom")
SHORTEST_MESSAGE = 15  # characters; shorter ones are names of values
MARK = re.compile(r"^<!-- GENERATED: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return MARK.sub(lambda match: GENERATORS[match[1]](), markdown)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or " "


# ---- recipes


def recipes() -> str:
    """Every field of both recipes, part by part."""
    from pairloom.schemas.recipes.curate import CurateRecipe
    from pairloom.schemas.recipes.train import TrainRecipe

    curate, train = _parts(CurateRecipe, "", _hash_note, set()), _parts(TrainRecipe, "", _resume_note, set())
    return "\n\n".join(["## Curate recipe", *curate, "## Train recipe", *train])


Note = Callable[[Any, str, str], str]
"""Last column of a field's row, from its recipe part, dotted path and name."""


def _parts(model: Any, path: str, note: Note, done: set[str]) -> Iterator[str]:
    """A recipe part, then the parts that its fields hold; each once."""
    if model.__name__ in done:
        return
    done.add(model.__name__)
    yield _part(model, path, note)
    for name in model.model_fields:
        for part in _models_of(model, name):
            yield from _parts(part, f"{path}.{name}" if path else name, note, done)


def _hash_note(model: Any, path: str, name: str) -> str:
    return "hash: no, outside of it" if path.startswith("ingest.fetch") else f"hash: {model.hash_note(name)}"


def _resume_note(model: Any, path: str, name: str) -> str:
    from pairloom.trainers.checkpoints.run_folder import MAY_CHANGE

    full = f"{path}.{name}" if path else name
    return "may change" if any(full == one or full.startswith(f"{one}.") for one in MAY_CHANGE) else "fixed"


def _models_of(model: Any, name: str) -> list[Any]:
    from pairloom.schemas.recipes.load import models_of_field

    return models_of_field(model.model_fields[name])


def _part(model: Any, path: str, note: Note) -> str:
    schema = model.model_json_schema()
    kind = schema["properties"].get("kind", {}).get("const")
    title = f"### `{model.__name__}`" + (f" (`kind: {kind}`)" if kind else "")
    rows = [
        (
            f"`{name}`",
            _type(schema["properties"].get(name, {})),
            "required" if field.is_required() else f"`{_default(field)}`",
            field.description or "",
            note(model, path, name),
        )
        for name, field in model.model_fields.items()
        if name != "kind"
    ]
    text = f"{title}\n\n{_paragraphs(model.__doc__)}\n\n"
    return text + (table(("Field", "Type", "Default", "Meaning", "Hash, resume"), rows) if rows else "")


def _paragraphs(doc: str | None) -> str:
    lines = [line.strip() for line in (doc or "").splitlines()]
    return "\n".join(lines).strip()


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if hasattr(value, "model_dump"):
        return "{}"
    return json.dumps(value, default=str)


def _type(schema: dict[str, Any]) -> str:
    """A JSON Schema as words."""
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema.get("anyOf") or schema["oneOf"]))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}" if "items" in schema else "list"
    names = {"integer": "int", "number": "float", "string": "text", "boolean": "bool", "object": "mapping"}
    return names.get(schema.get("type", ""), schema.get("type", "any")) + _limits(schema)


def _limits(schema: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f"{sign} {schema[name]}" for name, sign in signs.items() if name in schema]
    return f" ({', '.join(found)})" if found else ""


# ---- other pages


def cli() -> str:
    """Every command with its arguments and options."""
    import click

    from pairloom.__main__ import cli as module

    parts = []
    for name, command in sorted(module.cli.commands.items()):
        context = click.Context(command, info_name=f"pairloom {name}")
        parts.append(f"## pairloom {name}\n\n{_paragraphs(command.help)}\n\n```text\n{command.get_usage(context)}\n```")
        rows = [
            (", ".join(f"`{one}`" for one in option.opts), getattr(option, "help", "") or "", _choices(option))
            for option in command.params
            if isinstance(option, click.Option)
        ]
        parts.append(table(("Option", "Meaning", "Values, default"), rows) if rows else "It has no options.")
    return "\n\n".join(parts)


def _choices(option: Any) -> str:
    values = ", ".join(f"`{one}`" for one in getattr(option.type, "choices", ()))
    default = option.default
    shown = f"default `{default}`" if isinstance(default, int | float | str) and not isinstance(default, bool) else ""
    return "; ".join(filter(None, (values, shown)))


def drop_reasons() -> str:
    """Reasons with their step and meaning, from the comments of the enumeration."""
    from pairloom.schemas.drop_reason import TRANSIENT

    text = (REPOSITORY / "schemas" / "drop_reason.py").read_text()
    body = text.partition("class DropReason")[2].partition("\n\n\n")[0]
    rows, step = [], ""
    for line in body.splitlines():
        if group := re.match(r"\s+# (.+)$", line):
            step = group[1]
        elif member := re.match(r'\s+[A-Z_0-9]+ = "(\w+)"(?:\s+# (.*))?$', line):
            is_transient = "yes" if member[1] in {reason.value for reason in TRANSIENT} else ""
            rows.append((f"`{member[1]}`", step, member[2] or "", is_transient))
    return table(("Reason", "Step", "Meaning", "Transient"), rows)


def errors() -> str:
    """Every message that the code raises on purpose, by class; `...` stands for values."""
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for kind, message in _messages(path):
                found.setdefault(kind, set()).add(message)
    parts = []
    for kind in ("RecipeError", "InputError", "ShardError", "StorageError", "PairloomError"):
        rows = [(message.partition(";")[0], message.partition(";")[2]) for message in sorted(found.get(kind, ()))]
        parts.append(f"## {kind}\n\n{table(('Message', 'Cure'), rows)}")
    return "\n\n".join(parts)


def _messages(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        text = _template(node.args[-1])
        if node.func.id.endswith("Error") and len(text) > SHORTEST_MESSAGE:
            yield node.func.id, text


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) if isinstance(part, ast.Constant) else "..." for part in node.values)
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    return ""


def environment() -> str:
    """Every environment variable."""
    from pairloom.schemas.environment import VARIABLES

    rows = [(f"`{one.name}`", one.set_by, one.default and f"`{one.default}`", one.meaning) for one in VARIABLES]
    return table(("Variable", "Set by", "Default", "Meaning"), rows)


def presets() -> str:
    """Every model preset with its sizes, counted on models without memory."""
    import torch
    from transformers import AutoModel

    from pairloom.trainers.models.presets import PRESETS, preset_config

    rows = []
    for name, preset in PRESETS.items():
        vision, text = preset.vision, preset.text
        vocabulary = 49_408 if preset.family == "clip" else 32_000
        with torch.device("meta"):
            config = preset_config(name, {}, vocabulary, {"bos": 0, "eos": 1, "pad": 1})
            num_weights = sum(weight.numel() for weight in AutoModel.from_config(config).parameters())
        millions = f"{num_weights / 1e6:,.1f}"
        rows.append(
            (
                f"`{name}`", preset.family, f"{preset.image_size} px / {preset.patch_size}",
                f"{vision.layers} x {vision.width}", f"{text.layers} x {text.width}", str(preset.text_length), millions,
            )
        )  # fmt: skip
    head = (
        "Preset",
        "Family",
        "Image / patch",
        "Vision layers x width",
        "Text layers x width",
        "Tokens",
        "Million weights",
    )
    return table(head, rows)


def metrics() -> str:
    """Figures of metrics.jsonl."""
    from pairloom.schemas.metric_fields import INGEST_FIELDS, TRAINING_FIELDS

    ingest, training = "Ingest: `raw/<name>/<hash8>/metrics.jsonl`", "Training: `<run.dir>/metrics.jsonl`"
    parts = ((ingest, INGEST_FIELDS), (training, TRAINING_FIELDS))
    return "\n\n".join(
        f"## {title}\n\n{table(('Field', 'Meaning'), [(f'`{name}`', text) for name, text in fields.items()])}"
        for title, fields in parts
    )


GENERATORS: dict[str, Callable[[], str]] = {
    "recipes": recipes,
    "cli": cli,
    "drop_reasons": drop_reasons,
    "errors": errors,
    "environment": environment,
    "presets": presets,
    "metrics": metrics,
}
