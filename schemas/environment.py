"""The environment variables that pairloom reads, in one list for the documentation and its test."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One variable: who sets it, its default, and its meaning."""

    name: str
    set_by: str  # user, or the program that starts ranks
    default: str
    meaning: str


VARIABLES = (
    Variable("PAIRLOOM_CACHE", "user", "~/.cache/pairloom", "Folder for copies of remote tars; may be removed."),
    Variable("PAIRLOOM_STORAGE_ATTEMPTS", "user", "6", "How often a call to remote storage is tried in all."),
    Variable("PAIRLOOM_ERROR_FILE", "launcher", "", "File into which a rank writes its error as JSON."),
    Variable("OMP_NUM_THREADS", "user", "cores / ranks", "CPU threads of each training rank."),
    Variable("RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE", "launcher", "0, 1, 0, 1", "The rank, as in torch."),
    Variable("MASTER_ADDR, MASTER_PORT", "launcher", "", "Where the ranks of a run meet."),
    Variable("TORCH_EXTENSIONS_DIR", "user", "<cache>/pairloom/...", "Where DeepSpeed builds its operator."),
    Variable("XDG_CACHE_HOME", "user", "~/.cache", "Parent of the folder of built operators."),
    Variable("RAY_TMPDIR", "user", "/tmp", "Where a local Ray keeps sockets and logs; choose a short path."),
    Variable("RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH", "user", "", "Ray's token, where a cluster asks for one."),
    Variable("AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY", "user", "", "S3: server and keys."),
    Variable("FSSPEC_S3_...", "user", "", "S3: any option of s3fs, such as FSSPEC_S3_CONFIG_KWARGS."),
    Variable("HF_HOME", "user", "~/.cache/huggingface", "Cache of transformers."),
)  # fmt: skip
