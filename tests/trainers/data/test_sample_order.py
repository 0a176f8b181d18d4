"""The order of samples: pure, complete, the same for every world size."""

from collections import Counter
from itertools import pairwise

import pytest

from pairloom.schemas.errors import RecipeError
from pairloom.trainers.data.sample_order import Order, SampleIndex, Stream

SIZES = [16, 16, 5]
BATCH, LANES = 8, 4


def stream(sizes: list[int] = SIZES, seed: int = 3) -> Stream:
    return Stream([Order(sizes, seed, 0)], [1.0], LANES, BATCH)


def identity(place: SampleIndex) -> tuple[int, int, int]:
    return place.dataset, place.shard, place.row


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_ranks_together_equal_one_process(world_size: int) -> None:
    for step in range(20):
        whole = stream().step(step, 0, 1)
        parts = [place for rank in range(world_size) for place in stream().step(step, rank, world_size)]
        assert parts == whole


def test_every_epoch_takes_every_sample_once() -> None:
    places = [place for step in range(37) for place in stream().step(step, 0, 1)]
    assert len(places) == 37 * 8
    by_epoch = Counter((place.epoch, *identity(place)) for place in places)
    assert set(by_epoch.values()) == {1}
    for epoch in range(7):  # 37 samples an epoch, 296 places: 8 epochs, the last ones cut by the lanes
        assert sum(1 for key in by_epoch if key[0] == epoch) == sum(SIZES)


def test_epochs_and_seeds_differ() -> None:
    orders = {(seed, epoch): tuple(identity(Order(SIZES, seed, 0).sample(epoch * 37 + i)) for i in range(37))
              for seed in (1, 2) for epoch in (0, 1)}  # fmt: skip
    assert len(set(orders.values())) == 4


def test_a_lane_stays_in_its_shard() -> None:
    big = Stream([Order([100] * 8, 0, 0)], [1.0], 4, 4)
    shards = [big.step(step, 0, 4)[0].shard for step in range(200)]
    changes = sum(one != two for one, two in pairwise(shards))
    assert changes <= 2


def test_fewer_samples_than_lanes_still_give_all() -> None:
    tiny = Stream([Order([3], 0, 0)], [1.0], LANES, BATCH)
    rows = Counter(place.row for step in range(3) for place in tiny.step(step, 0, 1))
    assert set(rows) == {0, 1, 2}


def test_mixture_keeps_the_weights_and_each_set_its_own_order() -> None:
    mixed = Stream([Order([50], 0, 0), Order([70], 0, 1)], [3.0, 1.0], LANES, BATCH)
    places = [place for step in range(100) for place in mixed.step(step, 0, 1)]
    counts = Counter(place.dataset for place in places)
    assert counts == {0: 600, 1: 200}
    positions = sorted(place.position for place in places if place.dataset == 1)
    assert len(set(positions)) == 200


def test_replacement_is_fixed_by_where_the_broken_one_stood() -> None:
    place = stream().step(2, 0, 1)[3]
    first = stream().replacement(place, 1, seed=3)
    assert first == stream().replacement(place, 1, seed=3)
    assert len({identity(stream().replacement(place, attempt, seed=3)) for attempt in range(1, 9)}) > 1


def test_world_size_must_divide_the_lanes() -> None:
    with pytest.raises(RecipeError, match="4 cannot be dealt out to 3 ranks"):
        stream().step(0, 0, 3)


def test_golden_order() -> None:
    assert [identity(place)[1:] for place in stream().step(0, 0, 1)] == GOLDEN


GOLDEN = [(2, 4), (2, 0), (1, 15), (1, 1), (1, 2), (1, 12), (0, 6), (0, 0)]
