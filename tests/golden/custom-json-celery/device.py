"""Chooses the device that the model runs on."""

import ctypes
import logging
import os
import platform
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
    """Return the device's name where the machine has it: no framework is there to ask."""
    if device == "cuda":
        return find_nvidia_gpu()
    return "Apple GPU" if sys.platform == "darwin" and platform.machine() == "arm64" else None


def find_nvidia_gpu() -> str | None:
    """Return the name of the first GPU that NVIDIA's driver sees; it needs no framework."""
    try:
        driver = ctypes.CDLL("nvcuda" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    name = ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGetName(name, len(name), 0):
        return None
    return name.value.decode()
