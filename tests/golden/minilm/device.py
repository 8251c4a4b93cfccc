"""Chooses the device that the model runs on."""

import logging
import os
from functools import cache

from serving.limits import CannotLoad

DEVICES = ("cuda", "mps", "cpu")
PREFERRED = ("cuda", "mps")  # in this order, before the CPU

logger = logging.getLogger(__name__)


@cache
def get_device() -> str:
    """Return "cuda", "mps" or "cpu": what DEVICE says, else the first preferred one that is there.

    Whatever fails on the way, a missing or broken driver included, leads to "cpu". Only DEVICE is
    taken as it stands: who asks for a GPU should not get a CPU without a word.
    """
    wanted = os.getenv("DEVICE")
    if wanted:
        if wanted not in DEVICES:
            raise CannotLoad(f"DEVICE must be one of {', '.join(DEVICES)}; not {wanted!r}")
        logger.info("Using %s, as DEVICE says", wanted)
        return wanted
    for device in PREFERRED:
        try:
            if is_available(device):
                logger.info("Using %s", device)
                return device
        except Exception as error:  # noqa: BLE001 -- a broken driver raises anything
            logger.warning("Cannot ask for %s: %s", device, error)
    logger.info("Using cpu")
    return "cpu"


def is_available(device: str) -> bool:
    """Ask torch whether it can use the device."""
    import torch

    if device == "cuda":
        return torch.cuda.is_available()
    return torch.backends.mps.is_available()
