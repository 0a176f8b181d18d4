"""The demo's figures: sections of a table for the terminal, and one HTML page that opens offline."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from pairloom.cluster.render import number
from pairloom.demo import figures
from pairloom.demo.charts import loss_chart, score_chart
from pairloom.demo.meter import Meter
from pairloom.demo.workflow import Workflow, run_workflow
from pairloom.schemas.data_set.manifest import load_manifest, tar_url
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.trainers.evaluate.load import LlavaReader
from pairloom.trainers.evaluate.vqa import answer, load_questions, matches

TEMPLATE = Path(__file__).parent / "report.html"
NUM_SAMPLES = 8  # pictures of each kind in the report
VQA_READERS = ("instruct", "wrong image", "image removed", "text only", "align alone")
QUESTION_KINDS = ("shape", "colour", "yes_no", "count")

Section = dict[str, Any]


def sections_of(done: Workflow) -> list[Section]:
    """All figures as tables: title, note, columns, rows."""
    truth = figures.load_truth(done.out / "source" / "truth.jsonl")
    return [
        _planted(done, truth),
        _drop_reasons(done),
        _before_and_after(done),
        _answers(done),
        _cost(done),
    ]


def funnel_of(done: Workflow) -> list[tuple[str, int]]:
    """Number of rows after each step."""
    raw, basic = load_manifest(done.folders["raw/main"]), load_manifest(done.folders["selections/basic"])
    reasons = Counter(basic.drop_counts)
    duplicates = sum(count for reason, count in reasons.items() if reason.endswith("_duplicate"))
    return [
        ("rows in", raw.num_rows),
        ("ingested", raw.num_samples),
        ("without duplicates", raw.num_samples - duplicates),
        ("selected", basic.num_samples),
        ("self-filtered", load_manifest(done.folders["selections/filtered"]).num_samples),
    ]


def _planted(done: Workflow, truth: figures.Truth) -> Section:
    raw = done.folders["raw/main"]
    copies = figures.duplicate_figures(truth, raw, done.folders["dedupe/default"])
    wrong = figures.mismatch_figures(truth, raw, done.folders["selections/filtered"])
    matched, mismatched = figures.scores_by_truth(truth, raw, done.folders["signals/self_filter"])
    return {
        "title": "Planted and found",
        "note": "Copies are counted as pairs of rows. The filter drops a fixed share, so its recall is bounded by it.",
        "columns": ["", "planted", "found", "precision", "recall"],
        "rows": [
            ["copies of a picture", copies.num_planted, copies.num_found, copies.precision, copies.recall],
            ["captions of another picture", wrong.num_planted, wrong.num_found, wrong.precision, wrong.recall],
            ["AUC of the out-of-fold score", None, None, figures.auc(matched, mismatched), None],
            ["rows without image or reason", 0, figures.num_unexplained(raw), None, None],
        ],
    }


def _drop_reasons(done: Workflow) -> Section:
    manifest = load_manifest(done.folders["selections/filtered"])
    rows = sorted(manifest.drop_counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "title": "Dropped because",
        "note": "Rows in = kept + dropped: every row is one or the other.",
        "columns": ["reason", "rows"],
        "rows": [*rows, ["kept", manifest.num_samples], ["rows in", manifest.num_rows]],
    }


def _before_and_after(done: Workflow) -> Section:
    names = {
        "zero-shot": {"top1": "class accuracy, 24 classes"},
        "retrieval": {
            "image_to_text_recall_at_1": "recall@1, picture to caption",
            "image_to_text_recall_at_5": "recall@5, picture to caption",
            "text_to_image_recall_at_1": "recall@1, caption to picture",
            "text_to_image_recall_at_5": "recall@5, caption to picture",
        },
    }
    rows = [
        [label, done.scores[f"raw/{kind}"][key], done.scores[f"filtered/{kind}"][key]]
        for kind, labels in names.items()
        for key, label in labels.items()
    ]
    budget = figures.loss_curve(done.run("filtered"))[-1][0]
    return {
        "title": "SigLIP before and after the filter",
        "note": f"The same recipe and {budget:,} samples each; 500 held-out pictures of drawings never trained on.",
        "columns": ["", "unfiltered", "self-filtered"],
        "rows": rows,
    }


def _answers(done: Workflow) -> Section:
    keys = {"overall": "accuracy", **{kind: f"accuracy_{kind}" for kind in QUESTION_KINDS}}
    rows = [[label, *(done.scores[f"{reader}/vqa"][key] for reader in VQA_READERS)] for label, key in keys.items()]
    return {
        "title": "LLaVA and its blind twins, accuracy on held-out pictures",
        "note": "Wrong image, image removed: the same model. Text only: trained without pictures. Align: stage 1.",
        "columns": ["questions about", *VQA_READERS],
        "rows": rows,
    }


def _cost(done: Workflow) -> Section:
    rows: list[list[Any]] = [[name, f"{seconds:.0f} s"] for name, seconds in done.meter.seconds.items()]
    total = sum(done.meter.seconds.values())
    rows += [["together", f"{total:.0f} s"], ["peak memory", f"{done.meter.peak_bytes / 2**30:.2f} GiB"]]
    return {"title": "Time and memory of this run", "note": "", "columns": ["stage", ""], "rows": rows}


def write_report(done: Workflow, sections: Sequence[Section], path: Path) -> None:
    """Write the page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["figure"] = number
    page = environment.from_string(TEMPLATE.read_text()).render(
        seconds=int(sum(done.meter.seconds.values())),
        cards=_cards(done),
        funnel=funnel_of(done),
        sections=sections,
        charts=_charts(done),
        dropped=_samples(done, kept=False),
        kept=_samples(done, kept=True),
        answers=_answered_pictures(done),
    )
    path.write_text(page)


def _cards(done: Workflow) -> list[dict[str, str]]:
    funnel = dict(funnel_of(done))
    raw, filtered = done.scores["raw/zero-shot"]["top1"], done.scores["filtered/zero-shot"]["top1"]
    llava, blind = done.scores["instruct/vqa"]["accuracy"], done.scores["text only/vqa"]["accuracy"]
    return [
        {"value": f"{funnel['rows in']:,}", "label": "rows in, each with its fate recorded"},
        {"value": f"{funnel['self-filtered']:,}", "label": "pairs kept"},
        {"value": f"{raw:.1%} → {filtered:.1%}", "label": "class accuracy before and after the filter"},
        {"value": f"{llava:.1%}", "label": f"of LLaVA's answers right; {blind:.1%} without pictures"},
        {"value": f"{done.meter.peak_bytes / 2**30:.1f} GiB", "label": "peak memory"},
    ]


def _charts(done: Workflow) -> list[dict[str, str]]:
    truth = figures.load_truth(done.out / "source" / "truth.jsonl")
    matched, mismatched = figures.scores_by_truth(truth, done.folders["raw/main"], done.folders["signals/self_filter"])
    thresholds: Any = load_manifest(done.folders["selections/filtered"]).details["thresholds"]
    groups = {"matching captions": matched, "captions of another picture": mismatched}
    siglip = {name: figures.loss_curve(done.run(name)) for name in ("fold0", "fold1", "raw", "filtered")}
    llava = {name: figures.loss_curve(done.run(name)) for name in ("text_only", "align", "instruct")}
    scores = score_chart(groups, thresholds[0]["threshold"])
    return [
        {"title": "Scores of pairs, by the model that never saw them", "svg": scores},
        {"title": "SigLIP loss", "svg": loss_chart(siglip)},
        {"title": "LLaVA loss", "svg": loss_chart(llava)},
    ]  # fmt: skip


def _samples(done: Workflow, kept: bool) -> list[dict[str, str]]:
    """Pictures that the filter kept with the highest, or dropped with the lowest scores."""
    raw, selection = done.folders["raw/main"], done.folders["selections/filtered"]
    shards = load_manifest(raw).shards
    raw_rows = figures.read_rows(raw, ["caption", "offset", "num_bytes", "mime_type"]).to_pylist()
    places = [index for index, shard in enumerate(shards) for _ in range(shard.num_rows)]
    chosen = []
    for row, decision, place in zip(raw_rows, figures.read_rows(selection).to_pylist(), places, strict=True):
        score = decision["self_filter.clip_score"]
        if score is not None and (decision["kept"] if kept else decision["drop_reason"] == "low_score"):
            chosen.append((score, place, row))
    chosen.sort(key=lambda item: item[0], reverse=kept)
    samples = []
    for score, place, row in chosen[:NUM_SAMPLES]:
        data = ShardReader(tar_url(raw, shards[place])).read(row["offset"], row["num_bytes"])
        samples.append(
            {"image": _inline(data, row["mime_type"]), "caption": row["caption"], "note": f"score {score:.3f}"}
        )
    return samples


def _answered_pictures(done: Workflow) -> list[dict[str, Any]]:
    """Held-out pictures with their questions and the answers of the model."""
    questions = load_questions(str(done.out / "held_out" / "vqa.jsonl"))
    shown = list(dict.fromkeys(question.image for question in questions))[:NUM_SAMPLES]
    asked = [question for question in questions if question.image in shown]
    said = answer(LlavaReader(str(done.run("instruct") / "export")), asked, "real")
    pictures: dict[str, list[Mapping[str, Any]]] = {}
    for question, text in zip(asked, said, strict=True):
        turn = {
            "question": question.text,
            "answer": question.answers[0],
            "prediction": text,
            "is_right": matches(text, question.answers),
        }
        pictures.setdefault(question.image, []).append(turn)
    return [{"image": _inline(Path(url).read_bytes(), "image/jpeg"), "turns": turns} for url, turns in pictures.items()]


def _inline(data: bytes, mime_type: str) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"


def run_demo(out: Path) -> dict[str, Any]:
    """Run the workflow and write report.html and result.json below `out`; returns the result."""
    with Meter() as meter:
        done = run_workflow(out, meter)
        sections = sections_of(done)
        write_report(done, sections, out / "report.html")
    result = {"sections": sections, "funnel": funnel_of(done), "evaluations": done.scores}
    (out / "result.json").write_text(json.dumps(result, indent=1, sort_keys=True))
    return result
