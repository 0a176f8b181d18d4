"""Results as text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

MAX_ITEMS = 12  # of a list or mapping shown under one key


def _text_of(*renderables: Any) -> str:
    console = Console(file=io.StringIO(), width=110, highlight=False)
    for renderable in renderables:
        console.print(renderable)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue().rstrip("\n")


def number(value: Any) -> str:
    """A number with thousands separators and four significant digits."""
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def plain_table(result: Mapping[str, Any]) -> str:
    """Nested mappings, one line per value, indented by depth."""
    return "\n".join(_lines(result, 0))


def _lines(value: Mapping[str, Any], depth: int) -> list[str]:
    lines = []
    for key, item in value.items():
        label = f"{'  ' * depth}{key}"
        if isinstance(item, Mapping):
            lines += [label, *_lines(item, depth + 1)]
        elif isinstance(item, Sequence) and not isinstance(item, str) and item:
            lines.append(label)
            lines += [f"{'  ' * (depth + 1)}{_one_line(entry)}" for entry in item[:MAX_ITEMS]]
            if len(item) > MAX_ITEMS:
                lines.append(f"{'  ' * (depth + 1)}... {len(item) - MAX_ITEMS} more")
        else:
            lines.append(f"{label:<32} {number(item) if item != [] else '-'}")
    return lines


def _one_line(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return "  ".join(f"{key}={number(value)}" for key, value in entry.items() if value is not None)
    return number(entry)


def curate_table(summary: Mapping[str, Any]) -> str:
    """The steps of a curation: rows in, kept, the most frequent drop reasons, the folder."""
    table = Table(box=None, pad_edge=False)
    for column in ("step", "rows", "kept", "dropped because", "folder"):
        table.add_column(column, justify="right" if column in ("rows", "kept") else "left", overflow="fold")
    for step in summary["steps"]:
        reasons = sorted(step.get("drop_counts", {}).items(), key=lambda pair: (-pair[1], pair[0]))
        shown = ", ".join(f"{reason} {count:,}" for reason, count in reasons[:6])
        table.add_row(
            step["name"],
            number(step.get("num_rows")),
            number(step.get("num_kept")),
            shown or "-",
            step["folder"].removeprefix(f"{summary['root'].rstrip('/')}/"),
        )
    parts: list[Any] = [table, f"folders are below {summary['root']}"]
    if summary.get("retried"):
        parts.append(plain_table({"rows that were fetched again": summary["retried"]}))
    if summary.get("difference"):
        parts += ["", *_difference(summary["difference"])]
    return _text_of(*parts)


def _difference(found: Mapping[str, Any]) -> list[Any]:
    """The difference between two selections: counts, changed rules, then changed samples by reason."""
    if found["kept_before"] == found["kept_after"] == found["kept_by_both"]:
        return [f"the last selection kept the same {found['kept_after']:,} samples"]
    change = found["kept_after"] - found["kept_before"]
    lines: list[Any] = [
        f"difference to the last selection: {found['kept_before']:,} kept before, {found['kept_after']:,} now "
        f"({change:+,}), {found['kept_by_both']:,} by both"
    ]
    for rule, ends in found["rules"].items():
        lines.append(f"  {rule}: {number(ends['before'])} -> {number(ends['after'])}")
    table = Table(box=None, padding=(0, 2))
    table.add_column("change")
    table.add_column("samples", justify="right")
    table.add_column("reason")
    for change_name, key, verb in (
        ("kept -> dropped", "newly_dropped", "now dropped: "),
        ("dropped -> kept", "newly_kept", "was dropped: "),
    ):
        for reason, count in found[key].items():
            table.add_row(change_name, number(count), f"{verb}{reason}")
    return [*lines, table]


def num_bytes(value: int) -> str:
    """A size in bytes with its unit."""
    size = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def garbage_table(result: Mapping[str, Any]) -> str:
    """The results that `gc` removed, or would remove."""
    table = Table(box=None, pad_edge=False)
    for column in ("size", "files", "path", "why"):
        table.add_column(column, justify="right" if column in ("size", "files") else "left", overflow="fold")
    for one in result["garbage"]:
        path = one["url"].removeprefix(f"{result['root'].rstrip('/')}/")
        table.add_row(num_bytes(one["num_bytes"]), number(one["num_files"]), path, one["why"])
    parts: list[Any] = [table, ""] if result["garbage"] else []
    verb = "would be removed" if result["dry_run"] else "removed"
    parts.append(f"{num_bytes(result['num_bytes'])} {verb}, {result['num_kept']} results stay")
    if result["waiting"]:
        parts.append(
            f"{len(result['waiting'])} more that nothing points to have had a newer one for a short time only; "
            "--min-age 0 takes them, too"
        )
    return _text_of(*parts)


def demo_table(result: Mapping[str, Any]) -> str:
    """The demo's figures in their sections."""
    parts: list[Any] = []
    for section in result["sections"]:
        table = Table(title=section["title"], title_justify="left", box=None, pad_edge=False, title_style="bold")
        for index, column in enumerate(section["columns"]):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in section["rows"]:
            table.add_row(*[number(value) for value in row])
        parts += [table, ""]
    return _text_of(*parts)
