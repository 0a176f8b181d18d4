"""`pairloom inspect --html`: one page about a curation, which opens offline. Runs without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from pairloom.pipelines.engine.step_folder import latest_folder
from pairloom.pipelines.inspect.html_charts import histogram_chart
from pairloom.pipelines.inspect.html_images import GIANT, Album, duplicate_groups, largest_clusters, sample_rows
from pairloom.pipelines.inspect.html_numbers import (
    Selected,
    domains,
    drop_reasons,
    find_selected,
    funnel,
    histograms,
    joined_table,
    languages,
    marks_of,
)
from pairloom.schemas.data_set.manifest import is_complete, resolve
from pairloom.schemas.data_set.result_path import ResultPath
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

TEMPLATE = Path(__file__).parent / "report.html"


def write_report(path: str, out: str) -> None:
    """Write the page of a root (its `default` or only selection), or of one selection. Raises InputError."""
    root, folder = _find_selection(path)
    selected = find_selected(root, folder)
    table = pa.concat_tables([joined_table(selected, shard) for shard in selected.shards], promote_options="permissive")
    album = Album(selected)
    num_clusters, clusters = largest_clusters(selected)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text()).render(
        title=f"{storage.name_of(root)}: selection {selected.manifest.name}",
        folder=folder,
        sampled=None if len(selected.shards) == len(selected.raw.shards) else len(selected.shards),
        num_shards=len(selected.raw.shards),
        funnel=funnel(selected),
        reasons=drop_reasons(selected),
        charts=_charts(selected, table),
        languages=languages(table),
        domains=domains(table),
        num_clusters=num_clusters,
        clusters=[(cluster, [album.card(row) for row in cluster.rows]) for cluster in clusters],
        groups=[
            {"size": size, "is_giant": size >= GIANT, "cards": [album.card(row) for row in rows]}
            for size, rows in duplicate_groups(selected)
        ],
        samples={reason: [album.card(row) for row in rows] for reason, rows in sample_rows(selected).items()},
    )
    album.close()
    storage.put_bytes(out, page.encode("utf-8", "replace"))


def _find_selection(path: str) -> tuple[str, str]:
    """Root and folder of the selection of a path."""
    parent = storage.join(path, "selections")
    names = [storage.name_of(url) for url in storage.list_files(parent)]
    if not names:
        folder = resolve(path)
        result = ResultPath.parse(folder)
        if not is_complete(folder) or result is None or result.step != "selections":
            raise InputError(f"{path}: neither a selection nor a root with one; run `pairloom curate` first")
        return result.root, folder
    name = "default" if "default" in names else names[0]
    if len(names) > 1 and name != "default":
        raise InputError(f"{path}: several selections; name one: {', '.join(f'{parent}/{name}' for name in names)}")
    folder_or_none = latest_folder(path, "selections", name)
    if folder_or_none is None:
        raise InputError(f"{parent}/{name}: the selection is not complete; run `pairloom curate` again")
    return path.rstrip("/"), folder_or_none


def _charts(selected: Selected, table: pa.Table) -> list[dict[str, Any]]:
    """One histogram per measured column, with the thresholds of its rules."""
    return [
        {"title": column, "svg": histogram_chart(groups, column, marks_of(selected, column))}
        for column, groups in histograms(table).items()
    ]
