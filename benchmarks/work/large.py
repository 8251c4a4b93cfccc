"""Writes a large file: `large.py image`, `audio` or `video`, and a path."""

import os
import sys
import wave

WIDTH, HEIGHT = 2900, 2400
SECONDS, RATE = 30, 44_100
FRAMES, FRAME_WIDTH, FRAME_HEIGHT = 250, 1280, 720


def image(path: str) -> None:
    """Write random pixels, which no format makes smaller."""
    from PIL import Image

    pixels = os.urandom(3 * WIDTH * HEIGHT)
    Image.frombytes("RGB", (WIDTH, HEIGHT), pixels).save(path, "BMP")


def audio(path: str) -> None:
    """Write noise in stereo."""
    with wave.open(path, "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        file.writeframes(os.urandom(4 * SECONDS * RATE))


def video(path: str) -> None:
    """Write frames that become lighter."""
    import av
    import numpy as np

    with av.open(path, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=25, width=FRAME_WIDTH, height=FRAME_HEIGHT)
        for number in range(FRAMES):
            pixels = np.full((FRAME_HEIGHT, FRAME_WIDTH, 3), number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        file.mux(stream.encode())


if __name__ == "__main__":
    {"image": image, "audio": audio, "video": video}[sys.argv[1]](sys.argv[2])
