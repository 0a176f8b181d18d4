"""Write run_0_1_0: `python -m tests.golden.make_runs`. Made with torch 2.13.0 on an x86-64 processor.

It holds what release 0.1.0 leaves of two runs that stop after step 2, and the figures of the steps after it. Run this
only for a new release, in a folder of that name; the runs of an earlier release are never written again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.golden_data import copy_data_set
from tests.support.golden_runs import RUNS, figures_of
from tests.support.tiny_models import write_tokenizer

WIDTH, BATCH, LAST_STEP = 16, 8, 2
LAYERS = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
COMMON = {
    "data": {"train": [{"path": "root/curated/train"}], "num_lanes": 4, "num_workers": 0},
    "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1, "warmup_samples": 16},
}
LENGTH = {"total_samples": 6 * BATCH, "checkpoint_every_samples": LAST_STEP * BATCH, "keep_checkpoints": 9}
SIGLIP = {
    "run": {"dir": "runs/siglip", "seed": 3, **LENGTH},
    "task": {"kind": "contrastive", "loss": "siglip"},
    "model": {
        "preset": "siglip-test-tiny",
        "overrides": {"image_size": 32, "patch_size": 8, "text_length": 12, "vision": LAYERS, "text": LAYERS},
    },
    "tokenizer": {"train": {"vocab_size": 300}},
    **COMMON,
    "batch": {"global_batch_size": BATCH, "micro_batch_size": 2},
    "zero": {"stage": 1},
}
VISION = f"runs/siglip/checkpoints/step-{LAST_STEP:07d}/model"
LLAVA = {
    "run": {"dir": "runs/llava", "seed": 4, **LENGTH},
    "task": {"kind": "llava", "mode": "instruct", "vision_learning_rate": 1e-4, "max_length": 64},
    "model": {"llava": {"vision": VISION, "language": "models/llama", "feature_layer": -1}},
    **COMMON,
    "batch": {"global_batch_size": BATCH, "micro_batch_size": 4},
    "zero": {"stage": 2},
}
NUM_PROCESSES = {"siglip": 2, "llava": 1}


def write_llama(out: Path) -> None:
    """A language model of random weights."""
    tokenizer = write_tokenizer(out, max_length=64)
    torch.manual_seed(0)
    config = LlamaConfig(
        **LAYERS, vocab_size=len(tokenizer), max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(out)


def interrupt(run: Path) -> None:
    """Leave what is there right after the checkpoint of LAST_STEP."""
    for name in ("export", "tb"):
        shutil.rmtree(run / name)
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name != f"step-{LAST_STEP:07d}":
            shutil.rmtree(checkpoint)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:LAST_STEP]))


def main() -> None:
    """Train whole runs, keep their figures and cut them off."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy_data_set(folder)
        write_llama(folder / "models/llama")
        expected = {}
        for name, settings in {"siglip": SIGLIP, "llava": LLAVA}.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
            command = [str(Path(sys.executable).parent / "pairloom"), "train", f"{name}.yaml"]
            subprocess.run([*command, "--num-processes", str(NUM_PROCESSES[name])], check=True, cwd=folder)
            expected[name] = {"num_processes": NUM_PROCESSES[name], "figures": figures_of(folder / "runs" / name)}
            interrupt(folder / "runs" / name)
        for part in ("runs", "models"):
            shutil.copytree(folder / part, RUNS / part)
        for name in expected:
            shutil.copy(folder / f"{name}.yaml", RUNS)
        (RUNS / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
