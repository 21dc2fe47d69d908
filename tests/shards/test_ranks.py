"""Which part of all shards a process works on."""

from __future__ import annotations

import pytest

from weaktr.shards.ranks import Rank, rank_of

TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4"}
ARRAY = {
    "SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "2",
    "SLURM_ARRAY_TASK_STEP": "2",
}  # fmt: skip
SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "8"}


@pytest.mark.parametrize(
    ("option", "environment", "index", "count"),
    [
        (None, {}, 0, 1),
        (None, TORCHRUN, 2, 4),
        (None, ARRAY, 2, 3),
        (None, SRUN, 1, 8),
        ("0/1", TORCHRUN, 0, 1),
        ("3/64", ARRAY, 3, 64),
        (None, TORCHRUN | SRUN, 2, 4),
        (None, ARRAY | SRUN, 2, 3),
        (None, {"RANK": "0", "WORLD_SIZE": "1"} | ARRAY, 2, 3),
        (None, {"RANK": "1"}, 0, 1),
        (None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, 0, 1),  # a batch script, without srun
        (None, {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}, 3, 4),
    ],
)
def test_which_process_this_is(option, environment, index, count):
    rank = rank_of(option, environment)
    assert (rank.index, rank.count) == (index, count)


@pytest.mark.parametrize(
    ("option", "environment", "told"),
    [
        ("4/4", {}, "--shard: expected a number from 0 to 3 of 4 processes"),
        ("0/0", {}, "--shard: expected a number"),
        ("-1/4", {}, "--shard: expected I/N"),
        ("1", {}, "--shard: expected I/N"),
        ("1/4/5", {}, "--shard: expected I/N"),
        ("1e1/20", {}, "--shard: expected I/N"),
        (None, {"RANK": "4", "WORLD_SIZE": "4"}, "RANK and WORLD_SIZE: expected a number from 0"),
        (None, {"RANK": "x", "WORLD_SIZE": "4"}, "expected numbers, got RANK='x', WORLD_SIZE='4'"),
        (None, {"RANK": "-1", "WORLD_SIZE": "4"}, "--shard I/N overrides them"),
        (None, ARRAY | {"SLURM_ARRAY_TASK_ID": "8"}, "from 0 to 2 of 3 processes"),
        (None, ARRAY | {"SLURM_ARRAY_TASK_ID": "0"}, "from 0 to 2 of 3 processes"),
    ],
)
def test_numbers_that_do_not_fit(option, environment, told):
    with pytest.raises(ValueError) as error:
        rank_of(option, environment)
    assert told in str(error.value)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_every_shard_has_one_process(count):
    shards = [f"{number:05d}" for number in range(11)]
    parts = [Rank(index, count).part(shards) for index in range(count)]
    assert sorted(shard for part in parts for shard in part) == shards
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
