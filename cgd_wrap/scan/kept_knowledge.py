"""Keeping in the cache how well the model knew the classes when it was first scanned.

This decides by which numbers the model is trained. A run that was interrupted goes on with weights
that have learned the classes by then, and has to be trained by the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from cgd_wrap.escaping import escaped_logger
from cgd_wrap.files import agreed, differing_fields
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.sealed import read_sealed_json, write_sealed_json

logger = escaped_logger(__name__)

FILE, PLACE = "class_knowledge.json", {"kind": "class knowledge"}


def kept_knowledge(
    measure: Callable[[], float], about: Mapping[str, Any], options: PassOptions
) -> float:
    """Read how well the model knew the classes, or measure and store it.

    It is measured again if the cache is of other data or another architecture, or is overwritten.

    Args:
        measure: measures it.
        about: JSON values that describe data and model, without the model's weights.
        options: cache and configuration; only the main process may call this function.
    """
    if not options.is_kept:
        return measure()
    path = options.folder / FILE
    wanted = json.loads(json.dumps(about))
    found = None if options.overwrite else read_sealed_json(path, PLACE)
    stored = found["about"] if found else {}
    if found and not differing_fields(stored, agreed(stored, wanted)):
        value = float(found["value"])
        trained = value >= options.config.calibration.least_knowledge
        logger.info(
            "The model is %s, as decided when %s was made (class knowledge %.2f). For another "
            "model, choose another folder, or pass overwrite=True to scan().",
            "repaired" if trained else "trained from scratch", options.folder, value,
        )  # fmt: skip
        return value
    value = measure()
    try:
        write_sealed_json(path, {"value": value, "about": wanted}, PLACE)
    except OSError as error:
        logger.warning("Whether the model is repaired can't be kept for a resumed run: %s", error)
    return value
