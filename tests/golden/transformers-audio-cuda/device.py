"""Chooses the device that the model runs on."""

import logging
import os
from functools import cache

from serving.settings import settings

PREFERRED = ("cuda",)  # in this order, before the CPU

logger = logging.getLogger(__name__)


@cache
def get_device() -> str:
    """Return "cuda", "mps" or "cpu": what DEVICE says, else the first preferred one that is there.

    Whatever fails on the way, a missing or broken driver included, leads to "cpu". Only DEVICE is
    taken as it stands: who asks for a GPU should not get a CPU without a word.
    """
    if settings.device:
        logger.info("Using %s, as DEVICE says", settings.device)
        device, _, number = settings.device.partition(":")
        if number:  # the one GPU that this process sees is any framework's first
            os.environ["CUDA_VISIBLE_DEVICES"] = number
        return device
    for device in PREFERRED:
        try:
            if name := find(device):
                logger.info("Using %s: %s", device, name)
                return device
        except Exception as error:  # noqa: BLE001 -- a broken driver raises anything
            logger.warning("Cannot ask for %s: %s", device, error)
    logger.info("Using cpu")
    return "cpu"


def find(device: str) -> str | None:
    """Return the device's name where torch can use it."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return "Apple GPU" if torch.backends.mps.is_available() else None
