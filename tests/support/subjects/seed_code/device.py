"""The source document's section 2, call for call: the device is asked of torch alone."""

import logging


def get_device() -> str:
    """Return cuda, mps or cpu."""
    try:
        import torch

        if torch.cuda.is_available():
            logging.info("Using CUDA device: %s", torch.cuda.get_device_name(0))
            return "cuda"
        if torch.backends.mps.is_available():
            logging.info("Using MPS (Apple Silicon)")
            return "mps"
    except ImportError:
        pass
    logging.info("Falling back to CPU")
    return "cpu"
