"""DeepSpeed's configuration: every value written out and held, for what is silent changes with its version."""

import json

import pytest

from pairloom.schemas.errors import RecipeError
from pairloom.trainers.deepspeed_engine.config import deepspeed_config, micro_batch_size, zero_stage
from tests.support.shared_data import REPOSITORY
from tests.support.tiny_runs import tiny_recipe

CASES = {
    "deepspeed_zero1_fp32_two_ranks.json": (["zero.stage=1"], 2),
    "deepspeed_zero3_bf16_four_ranks.json": (
        ["zero.stage=3", "precision=bf16", "batch.global_batch_size=64", "batch.micro_batch_size=4"], 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_golden_configuration(name: str) -> None:
    overrides, world_size = CASES[name]
    recipe = tiny_recipe("run", "data", *overrides)
    config = deepspeed_config(recipe, world_size, micro_batch_size(recipe, world_size))
    assert config == json.loads((REPOSITORY / "tests" / "golden" / name).read_text())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_rank_has_nothing_to_cut_up(stage: int) -> None:
    recipe = tiny_recipe("run", "data", f"zero.stage={stage}")
    assert [zero_stage(recipe, ranks) for ranks in (1, 2)] == [0, stage]
    assert deepspeed_config(recipe, 1, 8)["zero_optimization"]["stage"] == 0


def test_a_micro_batch_is_never_more_than_the_share_of_a_rank() -> None:
    recipe = tiny_recipe("run", "data", "batch.micro_batch_size=4")
    assert [micro_batch_size(recipe, ranks) for ranks in (1, 2, 4)] == [4, 4, 2]


@pytest.mark.parametrize(
    ("overrides", "world_size", "message"),
    [
        ([], 3, "8 cannot be dealt out to 3 ranks"),
        (["batch.micro_batch_size=4", "batch.global_batch_size=24"], 4, "4 must divide the 6"),
    ],
)
def test_sizes_that_do_not_divide(overrides: list[str], world_size: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        micro_batch_size(tiny_recipe("run", "data", *overrides), world_size)
