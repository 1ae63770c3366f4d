"""The stopping rule in a loop that the host owns: whether it can watch."""

from __future__ import annotations

import logging

from cgd_wrap.adapters.guarded import Guarded
from cgd_wrap.randomness import kept_rng
from cgd_wrap.train.stopping import CleanAccuracyStopping

logger = logging.getLogger(__name__)


def watcher(guard: Guarded, tolerance: float | None) -> CleanAccuracyStopping | None:
    """:meth:`CGDGuard.stopping`, tried on one sample now rather than at the end of an epoch.

    Args:
        guard: scanned.
        tolerance: percentage points; default: the configuration's.

    Returns:
        None where no tolerance is asked for, and nothing can be measured.

    Raises:
        ValueError: a tolerance is asked for, and no sample is held out.
        TypeError: a tolerance is asked for, and the samples are no tensors that a model can take.
    """
    stopping = guard.stopping(tolerance)
    wanted = guard.config.tolerance if tolerance is None else tolerance
    if stopping is None:
        if wanted is None:
            return None
        raise ValueError(
            f"tolerance={wanted}, but no clean sample is held out to watch: raise "
            f"holdout_fraction, which is {guard.config.holdout_fraction}"
        )
    try:
        with kept_rng():
            stopping.loader.dataset[0]
    except TypeError as error:
        if wanted is not None:
            raise
        logger.warning("Held-out accuracy can't be measured: %s.", error)
        return None
    return stopping
