"""Chooses the device that the model runs on."""

import logging
import os
from functools import cache

from serving.limits import CannotLoad

DEVICES = ("cuda", "mps", "cpu")

logger = logging.getLogger(__name__)


@cache
def get_device() -> str:
    """Return what DEVICE says, else "cpu": the packages of this service are built for the CPU."""
    wanted = os.getenv("DEVICE")
    if wanted:
        if wanted not in DEVICES:
            raise CannotLoad(f"DEVICE must be one of {', '.join(DEVICES)}; not {wanted!r}")
        logger.info("Using %s, as DEVICE says", wanted)
        return wanted
    logger.info("Using cpu")
    return "cpu"
