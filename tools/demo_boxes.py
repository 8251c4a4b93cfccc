"""Draw the boxes of an answer on its page; the service's Python runs this, for it has Pillow."""

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SCALE = 3  # the page is small
RED = (214, 39, 40)


def draw(page: Path, answer: Path, target: Path) -> None:
    """Save the page, enlarged, with a box around each line of text or part of the page."""
    with Image.open(page) as opened:
        picture = opened.convert("RGB").resize((opened.width * SCALE, opened.height * SCALE))
    canvas = ImageDraw.Draw(picture)
    [found] = json.loads(answer.read_bytes()).values()
    for each in found:
        canvas.line(outline(each["box"]), fill=RED, width=3)
    picture.save(target)


def outline(box: Any) -> list[tuple[float, float]]:
    """Return a box's way around: of four corners, or left, top, right and bottom."""
    if not isinstance(box[0], list):
        left, top, right, bottom = box
        box = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return [(x * SCALE, y * SCALE) for x, y in [*box, box[0]]]


draw(*map(Path, sys.argv[1:]))
