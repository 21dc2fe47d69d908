"""How threads of matrix products wait for each other."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

#: Rounds for which a thread of libgomp looks whether there is work before it sleeps.
ROUNDS = 1000


def let_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting threads sleep soon; to be called before torch is imported, which reads it.

    By default they look for work over and over for milliseconds. Where other programs, or the
    processes that load photographs, want the same cores, each then keeps the others from working. A
    step of training beside one busy process, on two cores, took 1.5 times as long by that; alone it
    is 2 % faster. Whoever has set one of the variables has decided.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment["GOMP_SPINCOUNT"] = str(ROUNDS)
