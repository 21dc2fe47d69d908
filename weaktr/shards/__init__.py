"""Masks of many photographs, a shard at a time: by any number of processes and machines.

    inputs  which shards there are, and their photographs     tar archives, or parts of a list
    fetch   shards of other places come to this machine
    (weaktr.stages makes the masks of one shard)
    output  a tar or a folder of PNGs, and what was begun before
    rows    a row for each photograph: the Parquet index of a shard, and its statistics
    columns, statistics       what rows amount to, added exactly
    records                   which shards a folder of results has, and which of them are whole
    index                     all shards together: one index, one file of statistics
    query, verify             photographs with something in common; masks held against their rows

A folder of results:

    OUT/inputs.json            weights, settings and layout; the first process writes it
    OUT/masks/SHARD.tar        NAME.png each; or OUT/masks/NAME.png
    OUT/confidence/, soft/     likewise, where they are asked for
    OUT/index/SHARD.parquet    a row for each photograph of the shard
    OUT/index/SHARD.json       statistics; written last: a shard that has it is whole
    OUT/unfinished/            what processes have begun
    OUT/index.parquet, stats.json    of all shards; written when all are whole
"""
