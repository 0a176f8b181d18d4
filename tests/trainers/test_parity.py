"""Every parallel form gives the numbers of one process: ZeRO 0-3, both losses, GradCache, any number of ranks."""

from pathlib import Path

import pytest

from pairloom.trainers.ranks import gather_numbers, join_lists, rank, start_exchange, sum_over_ranks
from tests.support.ranks import run_ranks
from tests.support.tiny_runs import metrics_of, tiny_data, tiny_recipe, train_in_ranks

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)
LOSSES = ("clip", "siglip")
PAIRS = [("clip", 0), ("siglip", 1), ("clip", 2), ("siglip", 3)]  # where all of both would take long
CACHED = ("batch.micro_batch_size=2",)  # half of what one of two ranks has of a step


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process (`one-LOSS`) and of RANKS ranks (`RANKS-LOSS-STAGE`, and `-cached`) below one folder."""
    root = tmp_path_factory.mktemp("runs")
    data = tiny_data(root / "data")

    def recipe(name: str, loss: str, stage: int, *more: str):  # type: ignore[no-untyped-def]
        model = f"model.preset={loss}-test-tiny"
        return tiny_recipe(root / name, data, f"zero.stage={stage}", f"task.loss={loss}", model, *more)

    run_ranks(train_in_ranks, 1, [recipe(f"one-{loss}", loss, 0) for loss in LOSSES])
    plain = [recipe(f"2-{loss}-{stage}", loss, stage) for loss in LOSSES for stage in STAGES]
    cached = [recipe(f"2-{loss}-{stage}-cached", loss, stage, *CACHED) for loss, stage in PAIRS]
    run_ranks(train_in_ranks, 2, plain + cached)
    run_ranks(train_in_ranks, 4, [recipe(f"4-{loss}-{stage}", loss, stage) for loss, stage in PAIRS])
    return root


PARALLEL = [
    *(f"2-{loss}-{stage}" for loss in LOSSES for stage in STAGES),
    *(f"2-{loss}-{stage}-cached" for loss, stage in PAIRS),
    *(f"4-{loss}-{stage}" for loss, stage in PAIRS),
]


@pytest.mark.parametrize("name", PARALLEL)
def test_ranks_equal_one_process(runs: Path, name: str) -> None:
    one, many = metrics_of(runs / f"one-{name.split('-')[1]}"), metrics_of(runs / name)
    assert len(one) == len(many) == 6
    for single, split in zip(one, many, strict=True):
        assert split["loss"] == pytest.approx(single["loss"], rel=1e-6)
        assert split["logit_scale"] == pytest.approx(single["logit_scale"], rel=1e-6)
        assert split["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-5)


def test_the_loss_falls(runs: Path) -> None:
    losses = [record["loss"] for record in metrics_of(runs / "one-siglip")]
    assert losses[-1] < losses[0] / 2


def exchanges() -> tuple[list[float], list[str], list[float], list[list[float]]]:
    import torch

    own = torch.full((2,), float(rank()))
    further = start_exchange([own, own + 10], by=1)()
    (back,) = start_exchange([further[1]], by=-1)()
    numbers = gather_numbers(float(rank()))
    return (
        sum_over_ranks(1.0, float(rank())),
        join_lists([f"of rank {rank()}"]),
        numbers,
        [further[0].tolist(), back.tolist()],
    )


def test_exchanges() -> None:
    for number, (sums, lists, numbers, (further, back)) in enumerate(run_ranks(exchanges, 3)):
        assert sums == [3.0, 3.0]
        assert lists == ["of rank 0", "of rank 1", "of rank 2"]
        assert numbers == [0.0, 1.0, 2.0]
        assert further == [(number + 1) % 3] * 2
        assert back == [number + 10] * 2
