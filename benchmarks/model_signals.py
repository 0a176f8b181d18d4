"""Speed of CLIP features over shards of many and of few rows: batches are filled across shards.

    python -m benchmarks.model_signals --data FOLDER_OF_PHOTOGRAPHS --rows-per-shard 256 --rows-per-shard 16

One JSON line per size of shards. Without `--model` a random model of about the size of ViT-S/32 is used, for which a
row costs about as much to decode as to score. The start of the actor is measured with one shard and subtracted.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import click
from transformers import CLIPConfig, CLIPModel

from benchmarks.process_watch import TreeWatch
from pairloom.cluster.ray_session import start_ray
from pairloom.pipelines.signals.clip import ClipSignals
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.recipes.signals import SignalWork
from tests.support.raw_builder import Pair, build_raw
from tests.support.tiny_models import write_tokenizer

BATCH = 64


def write_model(out: Path) -> Path:
    """A CLIP of random weights, 6 layers of 384 numbers over 224 px."""
    tokenizer = write_tokenizer(out, max_length=77)
    tower = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
    text = {**tower, "vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    CLIPModel(CLIPConfig(text_config=text, vision_config={**tower, "patch_size": 32})).save_pretrained(out)
    config = Preprocess(size=224, mode="center_crop").processor_config("CLIPImageProcessor")
    (out / "preprocessor_config.json").write_text(json.dumps(config))
    return out


def measure(pairs: list[Pair], rows_per_shard: int, model: Path, scratch: Path) -> dict[str, float]:
    """Images per second, and CPU time per image."""
    raw = build_raw(scratch / f"raw{rows_per_shard}", pairs, rows_per_shard)
    shards = load_manifest(raw).shards
    signal = ClipSignals(kind="clip", name="clip", model=str(model), batch_size=BATCH)
    folder = str(scratch / f"signal{rows_per_shard}")
    taken = []
    for some in (shards[:1], shards):
        watch = TreeWatch(os.getpid())
        watch.start()
        start = time.perf_counter()
        signal.measure(SignalWork(raw, folder, some))
        taken.append((time.perf_counter() - start, watch.stop()))
    num_images = sum(shard.num_samples for shard in shards[1:] or shards)
    seconds, cpu_s = (after - before for before, after in zip(*taken, strict=True))
    return {
        "rows_per_shard": rows_per_shard,
        "images": num_images,
        "images_per_s": round(num_images / seconds, 1),
        "cpu_ms_per_image": round(1000 * cpu_s / num_images, 2),
    }


@click.command(context_settings={"show_default": True})
@click.option("--data", type=Path, required=True, help="A folder of photographs.")
@click.option("--model", type=Path, default=None, help="A Hugging Face folder; without it a random model.")
@click.option("--images", default=1024)
@click.option("--rows-per-shard", multiple=True, default=[256, 16])
def main(data: Path, model: Path | None, images: int, rows_per_shard: list[int]) -> None:
    """CLIP features of photographs, in shards of several sizes."""
    with tempfile.TemporaryDirectory() as scratch:
        model = model or write_model(Path(scratch) / "model")
        pairs = [
            Pair(
                path.read_bytes(), f"a photograph of people and dogs outside, number {index}", f"http://a.test/{index}"
            )
            for index, path in enumerate(sorted(data.rglob("*.jpg"))[:images])
        ]
        start_ray()
        for size in rows_per_shard:
            print(json.dumps(measure(pairs, size, model, Path(scratch))), flush=True)


if __name__ == "__main__":
    main()
