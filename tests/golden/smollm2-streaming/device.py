"""Chooses the device that the model runs on."""

import logging
import os
import sys
from functools import cache

from serving.settings import settings

PREFERRED = ("cuda", "mps")  # in this order, before the CPU

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
    """Return the device's name where llama.cpp was built for it and finds one."""
    import xllamacpp

    if (device == "mps") != (sys.platform == "darwin"):
        return None
    found = (each for each in xllamacpp.get_device_info() if "GPU" in each["type"].name)
    return next((str(each["description"]) for each in found), None)
