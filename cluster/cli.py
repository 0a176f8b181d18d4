"""`pairloom`: each command is a few lines that call into a package.

Exit codes: 0 done; 2 the user's mistake, in one line; 1 anything else.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pairloom import api
from pairloom.cluster import render
from pairloom.cluster.built_in_recipes import built_in_recipes, write_schemas
from pairloom.schemas.data_set.result_path import COMMANDS
from pairloom.schemas.errors import InputError, PairloomError, RecipeError, UserError
from pairloom.schemas.recipes.load import apply_override
from pairloom.schemas.storage import storage

if TYPE_CHECKING:
    from pairloom.trainers.evaluate.recipes import ImageMode


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pairloom")
def cli() -> None:
    """Turn image URLs into a curated WebDataset, train CLIP, SigLIP and LLaVA on it, and filter with the model."""


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--only", type=click.Choice(COMMANDS), help="Run one step; those before it must be complete.")
@click.option("--retry", type=click.Choice(["transient"]), help="Fetch rows again that failed for a transient reason.")
@click.option("--ray-address", help="Join this Ray cluster instead of starting a local one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def curate(
    recipe: str,
    overrides: tuple[str, ...],
    only: str | None,
    retry: Literal["transient"] | None,
    ray_address: str | None,
    as_json: bool,
) -> None:
    """Turn a source of image-text pairs into a curated data set."""
    summary = api.curate(recipe, overrides, only=only, retry=retry, ray_address=ray_address)
    _show(summary, as_json, render.curate_table)


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--num-processes", type=click.IntRange(min=1), help="Ranks; default: one per GPU, else one.")
@click.option("--ray-address", help="Run the ranks on this Ray cluster, by Ray Train.")
def train(recipe: str, overrides: tuple[str, ...], num_processes: int | None, ray_address: str | None) -> None:
    """Train a model; the same command again resumes an interrupted run."""
    api.train(recipe, overrides, num_processes=num_processes, ray_address=ray_address)


@cli.command()
@click.argument("model")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--kind", required=True, help="zero-shot, linear-probe, retrieval, vqa, or a kind that a plug-in adds.")
@click.option("--data", required=True, help="Evaluation data: a folder, a table, tars, parquet or a curated data set.")
@click.option("--train-data", help="linear-probe: the images that the classifier is fitted to.")
@click.option("--classes", help="zero-shot, linear-probe: file of class names; default: beside the data.")
@click.option("--templates", help="zero-shot: file of sentences with {} for the class name; default: beside the data.")
@click.option(
    "--image",
    "image_mode",
    type=click.Choice(["real", "none", "wrong"]),
    default="real",
    show_default=True,
    help="vqa: show the image, no image, or another image, to measure the worth of images.",
)
@click.option("--num-patches", type=click.IntRange(min=1), help="NaFlex: at most so many patches of an image.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(model: str, settings: tuple[str, ...], image_mode: ImageMode, as_json: bool, **options: Any) -> None:
    """Measure an exported model. KEY=VALUE: further fields of the evaluation's recipe part."""
    given = {name: value for name, value in options.items() if value is not None}
    for setting in settings:
        apply_override(given, setting)
    _show(api.evaluate(model, **{"image_mode": image_mode, **given}), as_json, render.plain_table)


@cli.command()
@click.argument("run_dir", metavar="RUN")
@click.option("--format", "export_format", required=True, help="hf, open-clip, onnx, or one that a plug-in adds.")
@click.option("--out", required=True, help="Folder to write.")
@click.option("--step", type=click.IntRange(min=1), help="Checkpoint to export; default: the newest.")
@click.option("--average", is_flag=True, help="The moving average of the weights (optimizer.average_decay).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(run_dir: str, export_format: str, out: str, step: int | None, average: bool, as_json: bool) -> None:
    """Export a checkpoint to what the ecosystem loads, with its model card and receipt."""
    folder = api.export(run_dir, out, format=export_format, step=step, averaged=average)
    result = {"folder": folder}
    receipt_url = storage.join(folder, "receipt.json")
    if storage.exists(receipt_url):
        receipt = json.loads(storage.read_text(receipt_url))
        result["largest_output_difference"] = receipt["largest_output_difference"]
    _show(result, as_json, render.plain_table)


@cli.command()
@click.argument("root")
@click.option("--uids", metavar="FILE", help="Uids to recall, one per line.")
@click.option("--urls", metavar="FILE", help="URLs to recall, one per line.")
@click.option("--domains", metavar="FILE", help="Hosts to recall with their subdomains, one per line.")
@click.option("--same-images", is_flag=True, help="Also recall the same image bytes under other URLs.")
@click.option("--runs", multiple=True, metavar="FOLDER", help="Also look for stale training runs here.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def recall(root: str, same_images: bool, runs: tuple[str, ...], dry_run: bool, as_json: bool, **files: str) -> None:
    """Apply opt-out requests, now and in every later ingest. FILE: a path, a URL, or - for stdin."""
    given = {kind: file for kind, file in files.items() if file is not None}
    if len(given) != 1:
        raise InputError("name one of --uids, --urls and --domains")
    [(kind, file)] = given.items()
    text = sys.stdin.read() if file == "-" else storage.read_input(file)
    request = api.OptOutRequest(kind, text.splitlines(), file)
    _show(api.apply_request(root, request, same_images, runs, dry_run), as_json, render.plain_table)


@cli.command()
@click.argument("root")
@click.option(
    "--keep", type=click.IntRange(min=1), default=1, show_default=True, help="Newest results of each name that stay."
)
@click.option("--min-age", type=float, default=24.0, show_default=True, metavar="HOURS",
              help="Keep all results of a name whose newest result is younger.")  # fmt: skip
@click.option("--runs", multiple=True, metavar="FOLDER", help="Also look for training runs here; their data stays.")
@click.option("--dry-run", is_flag=True, help="Only list the results, with sizes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def gc(root: str, keep: int, min_age: float, runs: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Remove results below a root that nothing points to."""
    result = api.gc(root, keep=keep, min_age_hours=min_age, runs=runs, dry_run=dry_run)
    _show(result, as_json, render.garbage_table)


@cli.command()
@click.argument("path")
@click.option("--html", help="Write a page with charts and images of a root or a selection to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(path: str, html: str | None, as_json: bool) -> None:
    """Show a root, data set, selection, run or model: counts, sizes, funnel, samples."""
    if html is not None:
        from pairloom.pipelines.inspect.html_report import write_report

        write_report(path, html)
        click.echo(html)
        return
    _show(api.inspect(path), as_json, render.plain_table)


@cli.command()
@click.argument("selection")
@click.option("--out", required=True, help="The .npy file to write.")
def subset(selection: str, out: str) -> None:
    """Write the uids that a selection keeps as DataComp's subset file."""
    from pairloom.pipelines.select.datacomp_subset import write_subset
    from pairloom.schemas.data_set.manifest import resolve

    click.echo(f"{write_subset(resolve(selection), out)} uids: {out}")


@cli.command()
@click.argument("root")
@click.argument("uid")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(root: str, uid: str, as_json: bool) -> None:
    """Show every decision about one sample, and its reason."""
    from pairloom.pipelines.inspect.inspect import explain as run

    _show(run(root, uid), as_json, render.plain_table)


@cli.command()
@click.argument("name", required=False)
@click.option("--out", help="Copy the recipe to this file.")
@click.option("--schema", metavar="FOLDER", help="Write the JSON Schemas of recipes there; editors complete by them.")
def recipes(name: str | None, out: str | None, schema: str | None) -> None:
    """List the built-in recipes, show one, or copy it."""
    if schema is not None:
        for path in write_schemas(Path(schema)):
            click.echo(path)
        return
    found = built_in_recipes()
    if name is None:
        for built_in in found.values():
            click.echo(f"{built_in.name:<24} {built_in.summary}")
        return
    if name not in found:
        raise InputError(f"no built-in recipe {name}; there are {', '.join(found)}")
    text = found[name].path.read_text()
    if out is None:
        click.echo(text, nl=False)
        return
    if Path(out).exists():
        raise InputError(f"{out} exists already; name another file")
    Path(out).write_text(text)


@cli.command()
@click.argument("recipe", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(recipe: str | None, as_json: bool) -> None:
    """Check versions, devices, disk and a recipe before a long run."""
    report = api.doctor(recipe)
    _show(report, as_json, render.plain_table)
    if report["problems"]:
        raise RecipeError(f"{len(report['problems'])} problem(s): {'; '.join(report['problems'])}")


def _show(result: Mapping[str, Any], as_json: bool, table: Any) -> None:
    click.echo(json.dumps(result, sort_keys=True, default=str) if as_json else table(result))


QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # one bar per loaded model would hide our own
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "passive",  # spinning threads slow other processes
}


def main() -> None:
    """Run the command line; errors become one line and an exit code."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)  # before the libraries are imported
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("pairloom").setLevel(logging.INFO)
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("pairloom: interrupted; the same command again goes on from here", err=True)
        sys.exit(130)
    except PairloomError as error:
        click.echo(f"pairloom: {' '.join(str(error).split())}", err=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
