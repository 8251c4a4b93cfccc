"""`GET /gpu`: memory, load and temperature of the machine's NVIDIA GPUs."""

import logging

from fastapi import APIRouter
from pydantic import BaseModel, Field

CRITICAL_CELSIUS = 85
HIGH_CELSIUS = 80

logger = logging.getLogger(__name__)
router = APIRouter()


class Gpu(BaseModel):
    """One GPU, as NVIDIA's driver sees it."""

    index: int
    name: str
    memory_used_mb: int
    memory_total_mb: int
    utilization_percent: int | None = Field(description="null where the GPU does not tell")
    temperature_celsius: int | None = Field(description="null where the GPU does not tell")


class Gpus(BaseModel):
    """The GPUs; none, and the reason, where there is no driver to ask."""

    gpus: list[Gpu]
    reason: str | None = None


@router.get("/gpu")
def gpus() -> Gpus:
    """Report each GPU, and log the ones that run hot."""
    found = read_gpus()
    for gpu in found.gpus:
        _warn_of_heat(gpu)
    return found


def read_gpus() -> Gpus:
    """Ask the driver about each GPU."""
    try:
        import pynvml
    except ImportError:  # the service works without it
        return Gpus(gpus=[], reason="The package nvidia-ml-py is not installed.")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Gpus(gpus=[], reason=f"NVIDIA's driver does not answer: {error}")
    try:
        return Gpus(gpus=[_read(index) for index in range(pynvml.nvmlDeviceGetCount())])
    except pynvml.NVMLError as error:
        return Gpus(gpus=[], reason=f"NVIDIA's driver does not answer: {error}")
    finally:
        pynvml.nvmlShutdown()


def _read(index: int) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        utilization = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    except pynvml.NVMLError:  # not told on every GPU, nor on slices of one
        utilization = None
    try:
        temperature = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    except pynvml.NVMLError:
        temperature = None
    name = pynvml.nvmlDeviceGetName(handle)
    return Gpu(
        index=index,
        name=name.decode() if isinstance(name, bytes) else name,
        memory_used_mb=memory.used // 2**20,
        memory_total_mb=memory.total // 2**20,
        utilization_percent=utilization,
        temperature_celsius=temperature,
    )


def _warn_of_heat(gpu: Gpu) -> None:
    celsius = gpu.temperature_celsius
    if celsius is None:
        return
    if celsius > CRITICAL_CELSIUS:
        logger.error("GPU %d (%s) is at %d °C: critical", gpu.index, gpu.name, celsius)
    elif celsius > HIGH_CELSIUS:
        logger.warning("GPU %d (%s) is at %d °C: high", gpu.index, gpu.name, celsius)
