"""How the threads of torch wait while a capture runs; torch reads it when it is imported."""

import os
import sys
import warnings

#: Threads that wait by spinning take the core from the writer beside the model; threads that sleep
#: at once wake too late for the model's next product. So they spin for some microseconds (GNU
#: OpenMP counts turns), then sleep.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}


def let_threads_sleep() -> None:
    """Set how threads wait, where the environment does not say; for before torch is imported.

    Where torch is there already, it is too late: the first call warns of what can still be done.
    """
    settings = {name: value for name, value in WAITING.items() if name not in os.environ}
    os.environ.update(settings)  # also when it is late, for processes that this one starts
    if settings and "torch" in sys.modules:
        names = " ".join(f"{name}={value}" for name, value in settings.items())
        warnings.warn(
            "torch was imported before alab, and its threads wait in a way that slows captures. "
            f"Import torch after `warehouse.record`, or set {names} before Python starts.",
            stacklevel=3,
        )
