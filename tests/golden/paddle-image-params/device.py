"""Chooses the device that the model runs on."""

import ctypes
import logging
import os
import signal
import sys
from functools import cache
from types import ModuleType

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
    """Return the device's name where Paddle sees it; it knows no accelerator but CUDA."""
    cuda = import_paddle().device.cuda
    return str(cuda.get_device_name()) if device == "cuda" and cuda.device_count() else None


def import_paddle() -> ModuleType:
    """Import Paddle, and undo what its import does to the process's signals and logs.

    It takes SIGTERM from the server, which then could not drain, and adds a handler to the root
    logger. `signal.signal` would work on the main thread only, and the model loads on another.
    """
    if "paddle" in sys.modules:
        return sys.modules["paddle"]
    signals = ctypes.pythonapi
    signals.PyOS_getsig.restype = ctypes.c_void_p
    signals.PyOS_setsig.argtypes = (ctypes.c_int, ctypes.c_void_p)
    server_handler = signals.PyOS_getsig(signal.SIGTERM)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    import paddle

    paddle.disable_signal_handler()
    signals.PyOS_setsig(signal.SIGTERM, server_handler)
    root.handlers[:] = handlers
    root.setLevel(level)
    return paddle
