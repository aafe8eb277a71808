import numpy as np
import pytest

from hstvg.data.plan import Plan, worker_positions

IDENTITY = "0123456789abcdef0123456789abcdef"


def plan(num_samples=37, seed=0, identity=IDENTITY):
    return Plan(num_samples=num_samples, seed=seed, identity=identity)


def epoch(order, number):
    first = number * order.num_samples
    return order.samples(np.arange(first, first + order.num_samples)).tolist()


def test_every_sample_stands_once_in_every_epoch():
    for number in range(4):
        assert sorted(epoch(plan(), number)) == list(range(37))


def test_epochs_seeds_and_data_sets_have_their_own_order():
    base = epoch(plan(), 0)
    others = [epoch(plan(), 1), epoch(plan(seed=1), 0), epoch(plan(identity="f" * 32), 0)]
    assert all(other != base for other in others)


def test_the_order_can_be_asked_for_anywhere():
    """Also across the seam of epochs, in any order and again."""
    whole = plan().samples(np.arange(200))
    asked = np.array([150, 36, 37, 0, 150, 199])
    assert plan().samples(asked).tolist() == whole[asked].tolist()


def test_one_sample_is_a_plan_and_none_is_not():
    assert epoch(plan(1), 0) == [0]
    with pytest.raises(ValueError, match="at least one sample"):
        plan(0)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("step", [0, 1, 9])
def test_the_workers_share_a_global_batch_without_gap_or_overlap(step, world_size):
    parts = [
        worker_positions(step, global_batch=8, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert all((np.diff(part) == 1).all() for part in parts)
    assert np.concatenate(parts).tolist() == list(range(8 * step, 8 * step + 8))


def test_the_samples_of_a_step_do_not_depend_on_the_number_of_workers():
    order, seen = plan(), []
    for world_size in (1, 2, 4):
        steps = [
            order.samples(worker_positions(step, global_batch=8, rank=rank, world_size=world_size))
            for step in range(10)
            for rank in range(world_size)
        ]
        seen.append(np.concatenate(steps).tolist())
    assert seen[0] == seen[1] == seen[2]
