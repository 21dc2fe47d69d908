"""Checkpoints that the published code wrote: how they are read and imported."""
