"""Draw the boxes of an answer on its page; the service's Python runs this, for it has Pillow."""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SCALE = 3  # the page is small
RED = (214, 39, 40)


def draw(page: Path, answer: Path, target: Path) -> None:
    """Save the page, enlarged, with a box around each line of text."""
    with Image.open(page) as opened:
        picture = opened.convert("RGB").resize((opened.width * SCALE, opened.height * SCALE))
    canvas = ImageDraw.Draw(picture)
    for line in json.loads(answer.read_bytes())["lines"]:
        corners = [(x * SCALE, y * SCALE) for x, y in line["box"]]
        canvas.line([*corners, corners[0]], fill=RED, width=3)
    picture.save(target)


draw(*map(Path, sys.argv[1:]))
