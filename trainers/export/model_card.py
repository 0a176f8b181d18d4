"""README.md of an export: a model card (Mitchell et al., arXiv 1810.03993) with recorded facts only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.export.usage import usage_of

_NOT_FIGURES = ("kind", "data", "train_data", "classes", "templates", "model", "checkpoint", "image_mode")
_METRICS = {"top1": "accuracy", "top5": "top_5_accuracy", "mean_per_class": "mean_accuracy", "accuracy": "accuracy"}


def model_card(
    form: str,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    receipt: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
) -> str:
    """Render the model card as markdown.

    `form` is hf, open-clip or onnx; `config` is the trained model's config.json; `evaluations` are lines of the run's
    evaluations.jsonl.
    """
    recipe = parse_recipe(provenance["recipe"], TrainRecipe, where="provenance.json")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )  # the card is markdown, not HTML
    name = recipe.run.dir.rstrip("/").rpartition("/")[2]
    return environment.get_template("model_card.md.jinja").render(
        front_matter=yaml.safe_dump(_front_matter(form, config, name, evaluations), sort_keys=False),
        name=name,
        what=_what(config, receipt),
        provenance=provenance,
        begins_with=_begins_with(recipe),
        usage=usage_of(form, config).strip(),
        data=_data_rows(recipe, provenance["data"]),
        passes=_passes(recipe, provenance),
        figures=_figure_rows(evaluations),
        receipt_line=_receipt_line(form, receipt),
        recipe=yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False),
    )


def _front_matter(
    form: str, config: Mapping[str, Any], name: str, evaluations: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """YAML metadata for model hubs: https://huggingface.co/docs/hub/model-cards."""
    if config["model_type"] == "llava":
        task = "image-text-to-text"
    else:
        task = "zero-shot-image-classification" if "text_config" in config else "image-feature-extraction"
    matter: dict[str, Any] = {
        "library_name": {"hf": "transformers", "open-clip": "open_clip"}.get(form, form),
        "pipeline_tag": task,
        "tags": ["pairloom", str(config["model_type"])],
    }
    results = [
        {
            "task": {"type": {"vqa": "visual-question-answering"}.get(str(line["kind"]), str(line["kind"]))},
            "dataset": {"name": str(line["data"]), "type": str(line["data"])},
            "metrics": [
                {"type": _METRICS.get(key, key), "name": key, "value": value}
                for key, value in line.items()
                if isinstance(value, float) and key != "l2_penalty"
            ],
        }
        for line in evaluations
    ]
    return matter | ({"model-index": [{"name": name, "results": results}]} if results else {})


def _what(config: Mapping[str, Any], receipt: Mapping[str, Any]) -> str:
    if config["model_type"] == "llava":
        kind = "vision-language model (LLaVA)"
    else:
        kind = "pair of an image and a text tower" if "text_config" in config else "vision model"
    size = f", {receipt['num_parameters'] / 1e6:,.4g} million parameters" if "num_parameters" in receipt else ""
    return f"A {kind} (`{config['architectures'][0]}`{size})"


def _begins_with(recipe: TrainRecipe) -> str:
    model = recipe.model
    folders = [recipe.init_from, model.path]
    folders += [model.dual.vision, model.dual.text] if model.dual else []
    folders += [model.llava.vision, model.llava.language] if model.llava else []
    return " and ".join(f"`{folder}`" for folder in folders if folder)


def _data_rows(recipe: TrainRecipe, data: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for source, identity in zip(recipe.data.train, data, strict=True):
        fold = source.hold_out_fold
        digest = identity["manifest_hash"]
        rows.append({
            "path": f"`{source.path}`",
            "part": f" without fold {fold[0]} of {fold[1]}" if fold else "",
            "num_samples": _count(identity.get("num_samples")),
            "num_shards": _count(identity.get("num_shards")),
            "weight": f"{source.weight:g}",
            "digest": f"`{digest}`" if digest else "not known",
        })  # fmt: skip
    return rows


def _count(value: int | None) -> str:
    return "not recorded" if value is None else f"{value:,}"


def _passes(recipe: TrainRecipe, provenance: Mapping[str, Any]) -> str | None:
    """Number of passes over the data set; None for a mixture, whose data sets differ in it."""
    counts = [identity.get("num_samples") for identity in provenance["data"]]
    return f"{provenance['samples_seen'] / counts[0]:.3g}" if len(counts) == 1 and counts[0] else None


def _figure_rows(evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "kind": str(line["kind"]),
            "data": f"`{line['data']}`",
            "name": key,
            "value": f"{value:.4g}" if isinstance(value, float) else f"{value:,}",
        }
        for line in evaluations
        for key, value in line.items()
        if key not in _NOT_FIGURES and isinstance(value, int | float)
    ]


def _receipt_line(form: str, receipt: Mapping[str, Any]) -> str:
    measured_by = {"hf": "plain transformers", "open-clip": receipt.get("measured_with", ""), "onnx": "onnxruntime"}
    by = measured_by.get(form, form)
    return (
        f"On probe images and texts the outputs of this folder, by {by}, differ from those of the trained model by "
        f"at most {receipt['largest_output_difference']:.3g}."
    )
