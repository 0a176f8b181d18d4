"""DeepSpeed's configuration, every value written out: silence means defaults that change (gradient clipping of 1.0)."""

from __future__ import annotations

from typing import Any

from pairloom.schemas.errors import RecipeError
from pairloom.schemas.recipes.train import TrainRecipe


def micro_batch_size(recipe: TrainRecipe, world_size: int) -> int:
    """Samples that a rank takes through one forward. Raises RecipeError where the sizes do not divide."""
    batch = recipe.batch.global_batch_size
    if batch % world_size:
        raise RecipeError(f"batch.global_batch_size {batch} cannot be dealt out to {world_size} ranks")
    share = batch // world_size
    micro = recipe.batch.micro_batch_size or share
    if micro >= share:
        return share
    if share % micro:
        raise RecipeError(
            f"batch.micro_batch_size {micro} must divide the {share} samples of each of {world_size} ranks"
        )
    return micro


def zero_stage(recipe: TrainRecipe, world_size: int) -> int:
    """The recipe's; 0 for one rank, which has nothing to cut up: the other stages would copy all gradients and weights.

    Checkpoints do not depend on it.
    """
    return recipe.zero.stage if world_size > 1 else 0


def deepspeed_config(recipe: TrainRecipe, world_size: int, micro: int) -> dict[str, Any]:
    """The configuration of one run."""
    is_bf16 = recipe.precision == "bf16"
    return {
        "train_batch_size": recipe.batch.global_batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": recipe.batch.global_batch_size // world_size // micro,
        "gradient_clipping": recipe.optimizer.max_grad_norm,
        "prescale_gradients": False,
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "torch_autocast": {"enabled": is_bf16, "dtype": "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": zero_stage(recipe, world_size),
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
        },
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
