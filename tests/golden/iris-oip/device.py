"""Chooses the device that the model runs on."""

import logging
import os
from functools import cache

from serving.settings import settings

logger = logging.getLogger(__name__)


@cache
def get_device() -> str:
    """Return what DEVICE says, else "cpu": the packages of this service are built for the CPU."""
    if settings.device:
        logger.info("Using %s, as DEVICE says", settings.device)
        device, _, number = settings.device.partition(":")
        if number:  # the one GPU that this process sees is any framework's first
            os.environ["CUDA_VISIBLE_DEVICES"] = number
        return device
    logger.info("Using cpu")
    return "cpu"
