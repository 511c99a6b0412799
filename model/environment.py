"""What the libraries under torch are told: they read the environment once, when they are loaded."""

from __future__ import annotations

import os

FOR_TORCH = {
    # threads that wait for work spin for 10 µs and then sleep. Longer takes the cores of whoever else is busy; not at
    # all, and each of a picture's hundreds of operations waits for a thread to wake up
    "GOMP_SPINCOUNT": "1000",
    "OMP_WAIT_POLICY": "PASSIVE",  # the same for other libraries than GNU's, which cannot be told how long
    # oneDNN keeps a program for each layer, size and batch: 1024 of them, some hundreds of MiB for no gain in speed
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
}


def prepare() -> None:
    """Set it where the user has not, before torch is imported."""
    chosen = "OMP_WAIT_POLICY" in os.environ  # the user's word on spinning
    for name, value in FOR_TORCH.items():
        if not (chosen and name == "GOMP_SPINCOUNT"):
            os.environ.setdefault(name, value)
