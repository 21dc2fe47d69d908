"""Photographs -> a folder of masks, whoever makes them: as loose files, or shard by shard.

masks.py    what labelling and prediction share around their models: photographs in, masks out
store.py    the folder: which masks are there and still fit, and writing those of further ones
shard.py    one shard of photographs -> its masks
worker.py   the shards of a process, one after the other
whose.py    whose masks a folder holds
"""
