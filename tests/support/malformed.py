"""Broken, truncated, mutated and bloated requests by the hundred, the same in each run."""

import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

# What is put over a length, a size or an offset.
EXTREMES = [struct.pack(">I", n) for n in (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 2**32 - 1)]
EXTREMES += [extreme[::-1] for extreme in EXTREMES] + [bytes(8), b"\xff" * 8]
PNG = b"\x89PNG\r\n\x1a\n"

# Run in a service's environment: one small recording or clip for each container and codec.
MAKE_MEDIA = """
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SOUNDS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "ogg": "libopus", "m4a": "aac",
          "aac": "aac", "mkv": "flac"}
CLIPS = {"mp4": "libx264", "mov": "mpeg4", "webm": "libvpx", "avi": "mjpeg", "ts": "mpeg2video"}
time = np.arange(9600) / 48000
sound = (np.sin(2000 * time) * 9000).astype(np.int16)[None, :]

for suffix, codec in SOUNDS.items():
    with av.open(str(Path(sys.argv[1], "sound." + suffix)), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
for suffix, codec in CLIPS.items():
    with av.open(str(Path(sys.argv[1], "clip." + suffix)), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 32, 32
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(6):
            pixels = np.full((32, 32, 3), 40 * number, dtype=np.uint8)
            pixels[:16] = number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
"""


@dataclass(frozen=True)
class Malformed:
    """A body, what it is sent as, and where it comes from."""

    name: str
    content: bytes
    content_type: str = "application/octet-stream"


def mutations(name: str, whole: bytes, count: int, seed: int) -> Iterator[Malformed]:
    """Yield so many files that are damaged in the ways that break parsers."""
    chance = random.Random(seed)  # noqa: S311 -- the same damage in each run

    def somewhere(*, head: bool) -> int:
        return chance.randrange(min(len(whole), 80) if head else len(whole))

    for number in range(count):
        damaged, kind = bytearray(whole), number % 8
        if kind == 0:
            del damaged[chance.randrange(len(whole)) :]
        elif kind == 1:
            damaged[somewhere(head=True)] ^= 1 << chance.randrange(8)
        elif kind in (2, 3):  # sizes, counts, offsets
            at, extreme = somewhere(head=kind == 2), chance.choice(EXTREMES)
            damaged[at : at + len(extreme)] = extreme
        elif kind == 4:
            for _ in range(chance.choice([1, 3, 30])):
                damaged[somewhere(head=False)] = chance.randrange(256)
        elif kind == 5:
            at = somewhere(head=False)
            damaged[at : at + 64] = bytes(64)
        elif kind == 6:
            at = somewhere(head=False)
            damaged[at:at] = damaged[: at + 1] * chance.choice([1, 20])
        else:
            del damaged[somewhere(head=False) : somewhere(head=False)]
            damaged += chance.randbytes(chance.choice([0, 100]))
        yield Malformed(f"{name}-{number}", bytes(damaged))


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a part of a PNG file."""
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check


def pictures() -> dict[str, bytes]:
    """Return a small picture in each format."""
    picture = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
    found = {}
    for name in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        file = BytesIO()
        picture.save(file, name)
        found[name.lower()] = file.getvalue()
    file = BytesIO()
    picture.convert("P").save(file, "PNG")
    found["palette"] = file.getvalue()
    for name, compression in {"lzw": "tiff_lzw", "deflate": "tiff_adobe_deflate"}.items():
        file = BytesIO()
        picture.save(file, "TIFF", compression=compression)
        found[name] = file.getvalue()
    return found


def picture_bombs() -> dict[str, bytes]:
    """Return pictures that are small, and large or endless once decoded."""
    row = zlib.compress(bytes(1_000_000))
    sizes = [(2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (0, 0), (1, 10**6 + 1), (65_535, 65_535)]
    found = {}
    for width, height in sizes:
        for depth, color in ((8, 2), (16, 6), (1, 0), (8, 3)):
            header = struct.pack(">2I5B", width, height, depth, color, 0, 0, 0)
            parts = [chunk(b"IHDR", header), chunk(b"IDAT", row), chunk(b"IEND", b"")]
            found[f"png-{width}x{height}-{depth}-{color}"] = PNG + b"".join(parts)
        gif = b"GIF89a" + struct.pack("<2H3B", width & 0xFFFF, height & 0xFFFF, 0x80, 0, 0)
        frame = b"," + struct.pack("<4HB", 0, 0, width & 0xFFFF, height & 0xFFFF, 0)
        found[f"gif-{width}x{height}"] = gif + bytes(6) + frame + b"\x02\x02\x4c\x01\x00;"
        bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, -height, 1, 24,
                                  0, 0, 0, 0, 0, 0)  # fmt: skip
        found[f"bmp-{width}x{height}"] = bmp + bytes(100)
        entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (278, 1),
                   (279, 2**31)]  # fmt: skip
        tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        tiff = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + tags
        found[f"tiff-{width}x{height}"] = tiff + bytes(4)
        found[f"tiff-loop-{width}x{height}"] = tiff + struct.pack("<I", 8)
    samples = struct.pack("<HHII", 277, 4, 1, 23_299)
    found["tiff-of-23299-samples"] = pictures()["tiff"].replace(
        struct.pack("<HHII", 277, 3, 1, 3), samples
    )
    plain = pictures()["png"]
    for label in (b"zTXt", b"iCCP", b"iTXt"):
        text = b"a\0\1\0\0\0" if label == b"iTXt" else b"a\0\0"
        bloated = chunk(label, text + zlib.compress(bytes(50_000_000)))
        found[f"png-{label.decode()}"] = plain[:33] + bloated + plain[33:]
    small = Image.new("L", (8, 8))
    for name in ("GIF", "WEBP", "PNG", "TIFF"):
        file = BytesIO()
        frames = [Image.new("L", (8, 8), shade % 256) for shade in range(300)]
        small.save(file, name, save_all=True, append_images=frames)
        found[f"{name.lower()}-of-301-frames"] = file.getvalue()
    for name in ("TIFF", "JPEG", "PNG", "WEBP", "GIF"):
        file = BytesIO()
        Image.new("1", (1001, 1000)).save(file, name)
        found[f"{name.lower()}-over-the-limit"] = file.getvalue()
    for orientation in (0, 9, 65_535):
        file, exif = BytesIO(), Image.Exif()
        exif[0x0112] = orientation
        small.save(file, "JPEG", exif=exif)
        found[f"jpeg-orientation-{orientation}"] = file.getvalue()
    return found


def containers() -> dict[str, bytes]:
    """Return files that are something else than what is asked for, or nothing."""
    return {
        "zip": b"PK\3\4" + bytes(200),
        "gzip-bomb": zlib.compress(bytes(50_000_000), wbits=31),
        "pdf": b"%PDF-1.7\n1 0 obj<</Length 99999999>>stream\n",
        "elf": b"\x7fELF" + bytes(200),
        "html": b"<html><img src=x>" * 20,
        "riff": b"RIFF\xff\xff\xff\xffWAVE",
        "riff-in-riff": b"RIFF\xff\xff\xff\xff" * 2_000,
        "atoms": struct.pack(">I4s", 8, b"moov") * 5_000,
        "nested-atoms": b"".join(
            struct.pack(">I4s", 8 * left, b"moov") for left in range(5_000, 0, -1)
        ),
        "atom-of-nothing": struct.pack(">I4sQ", 1, b"mdat", 2**63),
        "ebml": b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff" * 100,
        "ogg-pages": b"OggS\0\2" + bytes(20) + b"\xff" * 300,
        "id3": b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(500),
        "one-byte": b"\0",
    }


def documents(valid: bytes) -> Iterator[Malformed]:
    """Yield documents that are no JSON, or no valid document, or of odd values."""
    kind = "application/json"
    for mutation in mutations("json", valid, 400, seed=5):
        yield Malformed(mutation.name, mutation.content, kind)
    number = 0

    def made(content: bytes) -> Malformed:
        nonlocal number
        number += 1
        return Malformed(f"document-{number}", content, kind)

    for depth in (10, 100, 127, 128, 129, 200, 1_000, 10_000, 300_000):
        for left, right in ((b"[", b"]"), (b'{"values":', b"}"), (b'{"a":[', b"]}")):
            yield made(left * depth)
            yield made(left * depth + b"1" + right * depth)
            yield made(b'{"values": [1, 2, 3, 4], "a": ' + left * depth + b"1" + right * depth)
    for value in (b"NaN", b"-Infinity", b"1e309", b"-1e309", b"1e-400", b"9" * 5_000, b"0." + b"1" *
                  50_000, b"1e" + b"9" * 5_000, b"-0", b"01", b"1.", b".5", b"+1", b"0x10", b"1_0",
                  b"true", b"null", b'"1"', b'"\\u0000"', b'"\xff"', b'"\xed\xa0\x80"',
                  b'"\\ud800"', b"[1]", b"{}", b"1e30", b"-1e30", b"1e31", b"2e308", b"1\0",
                  b"\xef\xbb\xbf1", b"1 2", b"'1'", b"// 1"):  # fmt: skip
        yield made(b'{"values": [1, 2, 3, ' + value + b"]}")
        yield made(b'{"values": ' + value + b"}")
        yield made(value)
        yield made(b'{"values": [1, 2, 3, 4], "values": ' + value + b"}")
        yield made(b'{"values": [1, 2, 3, 4], ' + value + b": 1}")
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7"):
        yield made(valid.decode().replace("values", "válues").encode(encoding))
    for amount in (0, 1, 3, 10_001, 200_000):
        yield made(json.dumps({"values": [1] * amount}).encode())
        yield made(json.dumps({f"key{key}": key for key in range(amount)}).encode())
        yield made(json.dumps({"values": [{"a": []}] * amount}).encode())
        yield made(b'{"values": "' + b"\\u00e9" * amount + b'"}')


def forms(field: str, file: bytes, params: dict[str, str]) -> Iterator[Malformed]:
    """Yield multipart forms whose frame is broken, around a valid file."""
    head = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="a"\r\n\r\n'.encode()
    whole = head + b"%s\r\n"
    for name, value in params.items():
        whole += f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    whole += b"--x--\r\n"
    for number, mutation in enumerate(mutations("form", whole, 160, seed=6)):
        boundary = ("x", "y", "x" * 70, '"x"', "x; boundary=y")[
            number % 5 if number % 4 == 3 else 0
        ]
        content_type = f"multipart/form-data; boundary={boundary}"
        yield Malformed(mutation.name, mutation.content.replace(b"%s", file), content_type)


def corpus(media: str, field: str, params: dict[str, str], bases: dict[str, bytes],
           valid: bytes) -> list[Malformed]:  # fmt: skip
    """Return all the requests for an input kind."""
    if media == "json":
        return list(documents(valid))
    share = 480 // len(bases) + 1
    found = [
        mutation
        for seed, (name, whole) in enumerate(sorted(bases.items()))
        for mutation in mutations(name, whole, share, seed)
    ]
    bombs = picture_bombs() if media == "image" else pictures()
    found += [Malformed(name, content) for name, content in {**bombs, **containers()}.items()]
    return found + list(forms(field, valid, params))
