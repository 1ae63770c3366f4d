"""The stopping rule in a training loop that the host owns, if the rule can watch there."""

from __future__ import annotations

from cgd_wrap.adapters.guarded import Guarded
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.randomness import kept_rng
from cgd_wrap.train.stopping import CleanAccuracyStopping

logger = escaped_logger(__name__)


def watcher(guard: Guarded, tolerance: float | None) -> CleanAccuracyStopping | None:
    """Make the stopping rule, and try it on one sample now, not only at the end of an epoch.

    Args:
        guard: a guard that has scanned.
        tolerance: percentage points by which accuracy on the held-out part may fall below its best
            before training stops. Default: the configuration's.

    Returns:
        The stopping rule; None if no tolerance is asked for, and nothing can be measured.

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
