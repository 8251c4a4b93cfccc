"""The Open Inference Protocol. `AsTensor` is for inference.py: it says what a field travels as."""

from serving.contracts.oip.fields import AsTensor

__all__ = ["AsTensor"]
