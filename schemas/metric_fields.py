"""The fields of both kinds of `metrics.jsonl`, in one list for the documentation and its test."""

from __future__ import annotations

INGEST_FIELDS = {
    "time": "UTC time of the line, ISO 8601.",
    "step": "`ingest` or `retry`.",
    "seconds": "Time since the step began.",
    "seconds_left": "Estimated time left; null while it is not known.",
    "shards_done": "Finished shards, earlier runs included.",
    "shards_total": "Shards of the step.",
    "rows": "Rows of the source that were read.",
    "images": "Images that were stored.",
    "bytes": "Bytes that were received.",
    "dropped": "Dropped rows by drop reason.",
    "rows_per_s": "Rows per second over the last half minute.",
    "images_per_s": "Images per second over the last half minute.",
    "bytes_per_s": "Bytes per second over the last half minute.",
}
TRAINING_FIELDS = {
    "step": "Optimizer steps so far.",
    "samples_seen": "Samples over all ranks so far: the state of the data stream.",
    "loss": "Loss of the global batch.",
    "learning_rate": "Peak learning rate times the schedule's factor at this step.",
    "grad_norm": "Norm of the gradients before clipping.",
    "logit_scale": "contrastive: the scale that the loss uses.",
    "logit_bias": "contrastive with the SigLIP loss: its bias.",
    "num_patches": "NaFlex: patches per image at this step.",
    "num_replaced": "Samples that were broken and replaced at this step.",
    "sample_checksum": "Sum of crc32(uid) over the step's samples: equal for equal samples in any order.",
    "data_wait_fraction": "Share of the step's time that waited for data.",
    "samples_per_s": "Samples per second over all ranks at this step.",
    "memory_bytes": "Peak memory of rank 0: of its GPU, or of its process.",
}
