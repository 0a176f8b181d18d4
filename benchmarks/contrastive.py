r"""Training step of CLIP beside the plain Hugging Face model in a bare torch loop, on the same batches in the same run.

    python -m benchmarks.contrastive                                             # CPU: ViT-B/32, batch 64, fp32
    python -m benchmarks.contrastive --caption-words 80                          # captions that fill the text tower
    python -m benchmarks.contrastive --run                                       # and a whole run, its loader included
    python -m benchmarks.contrastive --preset clip-vit-l-14 --batch 256 --precision bf16 \
        --steps 20 --warm-up 5 --peak-tflops 989  # a GPU

Each program is measured in processes of its own, one after another, in several rounds, with the same pixels and
captions in memory. The bare loop is `CLIPModel(..., return_loss=True)`, `backward` and `torch.optim.AdamW` with default
settings; with bf16 it runs under `torch.autocast`. It is measured twice: with texts as long as the longest of the
batch, as pairloom's step, and padded to all positions of the text tower, as open_clip and most loops do; ratios are to
the first. pairloom's step is that of `pairloom train` in one rank, in which ZeRO 1 has nothing to partition and works
like ZeRO 0. open_clip's step is measured if it can be imported and there is a GPU. `--run` trains from tars of
synthetic images, loader included, so that the model may wait for data. On a shared machine, CPU time is more reliable
than samples/s.

MFU: the FLOPs of all matrix products and of attention, three times those of the forward, by --peak-tflops.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SENTENCE = "a photograph of two dogs that run along the beach behind a red ball number"
BARE, PADDED, COMPILED = "bare torch", "bare torch, padded", "pairloom, compiled, ZeRO 0"
OPEN_CLIP_NAMES = {"clip-vit-b-32": "ViT-B-32", "clip-vit-b-16": "ViT-B-16", "clip-vit-l-14": "ViT-L-14"}


def main() -> None:
    """Print one table, ratios to the bare loop last."""
    options = parse()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    names = [BARE, PADDED, "pairloom, ZeRO 0", "pairloom, ZeRO 1"]
    names += [COMPILED] * options.compile + ["open_clip"] * has_open_clip()
    rates: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            rates[name].append(in_fresh_process(name, options.threads))
            print(f"{name}: {rates[name][-1]['samples_per_s']:.2f} samples/s", file=sys.stderr, flush=True)
    if options.run:
        rates["pairloom, a whole run"] = [whole_run(options)]
    base = statistics.median(one["samples_per_s"] for one in rates[names[0]])
    for name, found in rates.items():
        rate = statistics.median(one["samples_per_s"] for one in found)
        parts = [f"{name:26} {rate:9.2f} samples/s  {rate / base:6.3f} of the bare loop"]
        if "cpu_ms" in found[0]:
            parts.append(f"{statistics.median(one['cpu_ms'] for one in found):8.1f} ms of CPU per sample")
        parts.append(f"{max(one['bytes'] for one in found) / 1e9:6.2f} GB at most")
        if options.peak_tflops:
            parts.append(f"MFU {rate * rates[names[0]][0]['flops'] / options.peak_tflops / 1e12:.1%}")
        if "data_wait_fraction" in found[0]:
            parts.append(f"data wait {found[0]['data_wait_fraction']:.2%}")
        print("  ".join(parts), flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="clip-vit-b-32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=2, help="measured steps per process")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before the measured ones; more on a GPU")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in this precision; without it no MFU is printed")
    parser.add_argument("--caption-words", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="also with model.compile")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--run", action="store_true", help="also a whole run from tars")
    parser.add_argument("--measure", help="one program, in this process; for the processes that main starts")
    return parser.parse_args()


def caption(number: int, num_words: int) -> str:
    """A caption of `num_words` words, another one for each number."""
    words = itertools.islice(itertools.cycle(SENTENCE.split()), num_words - 1)
    return " ".join([*words, str(number)])


def has_open_clip() -> bool:
    """True where open_clip's step can be measured."""
    import torch

    try:
        import open_clip  # noqa: F401
    except (ImportError, RuntimeError):  # RuntimeError: torchvision beside a torch that it was not built for
        return False
    return torch.cuda.is_available()


def in_fresh_process(name: str, threads: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.contrastive", *sys.argv[1:], "--measure", name]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment(threads))
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def environment(threads: int) -> dict[str, str]:
    """The environment of a single rank."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "DS_IGNORE_CUDA_DETECTION": "1", "TORCHDYNAMO_DISABLE": "1"}
    rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return {**os.environ, **quiet, **rank, "OMP_NUM_THREADS": str(threads)}


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Samples/s of the median step, peak memory, and FLOPs of a sample."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        step, flops = make_step(options, Path(folder))
        times, cpu_times = [], []
        for _ in range(options.warm_up + options.steps):
            start, cpu_start = time.perf_counter(), time.process_time()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            cpu_times.append(time.process_time() - cpu_start)
    seconds, cpu = (statistics.median(found[options.warm_up :]) / options.batch for found in (times, cpu_times))
    return {"samples_per_s": 1 / seconds, "cpu_ms": cpu * 1e3, "bytes": peak_bytes(), "flops": flops}


def peak_bytes() -> int:
    """Of the GPU where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def make_step(options: argparse.Namespace, folder: Path) -> tuple[Callable[[], Any], float]:
    """A call that takes one optimizer step, and the FLOPs of a sample in it."""
    import numpy as np
    import torch

    from pairloom.trainers.deepspeed_engine.engine import device, start_engine, start_process_group
    from pairloom.trainers.task import TrainSample
    from pairloom.trainers.tasks.contrastive import ContrastiveTask
    from pairloom.trainers.text.bpe_tokenizer import train_tokenizer

    captions = [caption(n, options.caption_words) for n in range(2000)]
    train_tokenizer(captions, 1000, str(folder / "tokenizer"), 77)
    stage = int(options.measure[-1]) if options.measure.startswith("pairloom") else 0
    recipe = make_recipe(options, str(folder), "unused", stage)
    if options.measure.startswith("pairloom"):
        start_process_group()
    task = ContrastiveTask(recipe, str(folder / "tokenizer"))
    size, draw = task.preprocess.size, np.random.default_rng(0)
    images = [draw.integers(0, 256, (size, size, 3), np.uint8) for _ in captions[: options.batch]]
    samples = [TrainSample(str(n), image, captions[n]) for n, image in enumerate(images)]
    batch = {name: tensor.to(device()) for name, tensor in task.collate(samples).items()}
    if options.measure == PADDED:
        batch |= padded(batch, task.model.hf.config.text_config)
    flops = 3 * forward_flops(task.model.hf.config, batch["input_ids"].shape[1])
    if options.measure.startswith("pairloom"):
        engine = start_engine(task, recipe)
        return lambda: task.take_step(engine, [batch]), flops
    pixels = torch.from_numpy(task.preprocess.normalise(np.stack(images))).to(device())
    if options.measure == "open_clip":
        return open_clip_step(options, pixels), flops
    tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return bare_step(options, task.model.hf.config, {"pixel_values": pixels, **tokens}), flops


def padded(batch: dict[str, Any], config: Any) -> dict[str, Any]:
    """The tokens padded to all positions of the text tower."""
    from torch.nn.functional import pad

    missing = (0, config.max_position_embeddings - batch["input_ids"].shape[1])
    values = {"input_ids": config.pad_token_id, "attention_mask": 0}
    return {name: pad(batch[name], missing, value=value) for name, value in values.items()}


def make_recipe(options: argparse.Namespace, folder: str, data: str, stage: int) -> Any:
    """The recipe of both the steps and the whole run."""
    from pairloom.schemas.recipes.load import parse_recipe
    from pairloom.schemas.recipes.train import TrainRecipe

    settings = {
        "run": {"dir": f"{folder}/run", "total_samples": (options.warm_up + options.steps) * options.batch},
        "task": {"kind": "contrastive", "loss": "clip"},
        "model": {"preset": options.preset, "compile": options.measure == COMPILED},
        "tokenizer": {"path": f"{folder}/tokenizer"},
        "data": {"train": [{"path": data}]},
        "batch": {"global_batch_size": options.batch},
        "optimizer": {"learning_rate": 1e-4, "weight_decay": 0.1},
        "zero": {"stage": stage},
        "precision": options.precision,
    }
    return parse_recipe(settings, TrainRecipe, "benchmark")


def bare_step(options: argparse.Namespace, config: Any, batch: dict[str, Any]) -> Callable[[], Any]:
    """The plain model, as its documentation trains it."""
    import torch
    from transformers import CLIPModel

    model = CLIPModel(config).to(batch["pixel_values"].device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    return torch_step(options, model, optimizer, lambda: model(**batch, return_loss=True).loss)


def open_clip_step(options: argparse.Namespace, pixels: Any) -> Callable[[], Any]:
    """open_clip's model and loss of the same size, in its own training's precision."""
    import open_clip
    import torch

    name = OPEN_CLIP_NAMES[options.preset]
    model = open_clip.create_model(name, device=pixels.device).train()
    tokens = open_clip.get_tokenizer(name)([caption(n, options.caption_words) for n in range(len(pixels))]).to(
        pixels.device
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    loss_of = open_clip.ClipLoss()
    return torch_step(options, model, optimizer, lambda: loss_of(*model(pixels, tokens)[:3]))


def torch_step(
    options: argparse.Namespace, model: Any, optimizer: Any, loss_of: Callable[[], Any]
) -> Callable[[], Any]:
    """Forward, backward and update of a bare loop."""
    import torch

    kind = next(model.parameters()).device.type

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(kind, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def forward_flops(config: Any, text_length: int) -> float:
    """FLOPs of one sample: two per multiplication and addition."""
    vision, text = config.vision_config, config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2
    embedding = 2 * patches * 3 * vision.patch_size**2 * vision.hidden_size
    return embedding + sum(
        tower.num_hidden_layers
        * (
            2 * length * (4 * tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size)
            + 4 * length**2 * tower.hidden_size
        )
        for tower, length in ((vision, patches + 1), (text, text_length))
    )


def whole_run(options: argparse.Namespace) -> dict[str, float]:
    """`pairloom train` under ZeRO 1 on tars of synthetic images, without its first steps."""
    from benchmarks.loader import drawn
    from pairloom.cluster.launch_trainer import launch_trainer
    from pairloom.trainers.text.bpe_tokenizer import train_tokenizer
    from tests.support.curated_builder import build_curated

    with tempfile.TemporaryDirectory() as folder:
        captions = [caption(n, options.caption_words) for n in range(2000)]
        train_tokenizer(captions, 1000, f"{folder}/tokenizer", 77)
        pairs = [(drawn(n), captions[n % len(captions)]) for n in range(4 * options.batch)]
        data = build_curated(folder, pairs, options.batch)
        recipe = make_recipe(options, folder, data, 1)
        os.environ.pop("OMP_NUM_THREADS", None)
        launch_trainer(recipe)
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    counted = lines[options.warm_up :]
    return {
        "samples_per_s": statistics.median(line["samples_per_s"] for line in counted),
        "bytes": max(line["memory_bytes"] for line in counted),
        "data_wait_fraction": statistics.mean(line["data_wait_fraction"] for line in counted),
    }


if __name__ == "__main__":
    main()
