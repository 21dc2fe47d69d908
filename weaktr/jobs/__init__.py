"""What ``weaktr label`` and ``weaktr predict`` do with a model and photographs.

folder.py   a folder of photographs -> a folder of masks
shards.py   many photographs -> masks, a shard at a time, by any number of processes
on_ray.py   the same by workers of Ray
masked.py   photographs and their masks, for what reads both afterwards
"""
