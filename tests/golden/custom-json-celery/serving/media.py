"""Answers that are sounds or clips: `Output` in inference.py is one of these types, or has them.

NumPy and PyAV are imported by name: a service that encodes with them has to declare them.
"""

import wave
from collections.abc import Iterable
from importlib import import_module
from io import BytesIO
from typing import Any, Literal, Self

from serving.outputs import File


class Recording(File):
    """A recording."""

    content_type: Literal["audio/wav", "audio/flac"] = "audio/wav"

    @classmethod
    def of(cls, samples: Any, sample_rate: int, **fields: Any) -> Self:
        """Encode floats of (n,) or (channels, n) at so many Hz; by numpy, FLAC by av as well.

        They become 16 bits; what is beyond -1 to 1 is cut off. Raises ValueError for what is not
        finite, and for more than two channels.
        """
        np = import_module("numpy")
        channels = np.atleast_2d(samples)
        layout = {1: "mono", 2: "stereo"}.get(len(channels))
        if not layout or channels.dtype.kind != "f" or not np.isfinite(channels).all():
            raise ValueError("A recording has one or two channels of finite floats")
        pcm = (channels.clip(-1, 1) * 32767).round().astype("<i2")
        if fields.get("content_type", cls.model_fields["content_type"].default) == "audio/flac":
            frame = import_module("av").AudioFrame.from_ndarray(pcm, "s16p", layout)
            frame.sample_rate = sample_rate
            return cls(data=mux("flac", "flac", [frame], rate=sample_rate, layout=layout), **fields)
        with wave.open(buffer := BytesIO(), "wb") as file:
            file.setparams((len(pcm), 2, sample_rate, 0, "NONE", ""))
            file.writeframes(pcm.T.tobytes())
        return cls(data=buffer.getvalue(), **fields)


class Clip(File):
    """A clip without sound."""

    content_type: Literal["video/mp4", "video/webm"] = "video/mp4"

    @classmethod
    def of(cls, frames: Iterable[Any], fps: int, **fields: Any) -> Self:
        """Encode frames of uint8, (height, width, 3) with even sides, all of one size; by av.

        Raises ValueError where they are others, or none.
        """
        kind = fields.get("content_type", cls.model_fields["content_type"].default)
        codec = {"video/mp4": "libx264", "video/webm": "libvpx-vp9"}[kind]
        make = import_module("av").VideoFrame.from_ndarray
        pictures = [make(frame, "rgb24") for frame in frames]
        sizes = {(picture.width, picture.height) for picture in pictures}
        if len(sizes) != 1:
            raise ValueError("A clip has frames of one size")
        [(width, height)] = sizes
        form = {"rate": fps, "width": width, "height": height, "pix_fmt": "yuv420p"}
        return cls(data=mux(kind.removeprefix("video/"), codec, pictures, **form), **fields)


def mux(container: str, codec: str, frames: Iterable[Any], **form: Any) -> bytes:
    """Return a file of PyAV's frames; `form` says what PyAV has to know of the stream."""
    with import_module("av").open(buffer := BytesIO(), "w", format=container) as output:
        stream = output.add_stream(codec, **form)
        for frame in frames:
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()
