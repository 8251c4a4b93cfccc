"""Chooses the device that the model runs on."""

import ctypes
import logging
import os
import sys
from functools import cache

from serving.limits import CannotLoad

DEVICES = ("cuda", "mps", "cpu")
PREFERRED = ("cuda", "mps")  # in this order, before the CPU
PROVIDERS = {"cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}

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
    """Ask ONNX Runtime whether it was built for the device, and the machine whether it has one."""
    import onnxruntime

    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        return False
    # The CUDA build names its provider on machines without a GPU too.
    return device != "cuda" or has_nvidia_gpu()


def has_nvidia_gpu() -> bool:
    """Ask NVIDIA's driver, which needs no framework, whether it sees a GPU."""
    try:
        driver = ctypes.CDLL("nvcuda" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return False
    return count.value > 0
