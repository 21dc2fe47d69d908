"""What both trainings share: loop, optimisers, log of metrics, and the state to resume from."""
