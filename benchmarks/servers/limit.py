"""The same work with no service around it: `limit.py classifier`, or `limit.py encoder SIZE`.

Runs for as many seconds as each line of its input says, and prints items per second, and
milliseconds of processor time per item.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


def classifier() -> Callable[[], object]:
    """Return what decodes and classifies one picture."""
    from classifier import Classifier, decode

    file = Path(os.environ["PICTURE"]).read_bytes()
    model = Classifier()
    return lambda: model.run(decode(file))


def encoder(size: int) -> Callable[[], object]:
    """Return what embeds a batch of texts."""
    from encoder import Encoder

    texts = [os.environ["TEXT"]] * size
    model = Encoder()
    return lambda: model.run(texts)


size = int(sys.argv[2]) if len(sys.argv) > 2 else 1
work = classifier() if sys.argv[1] == "classifier" else encoder(size)
for _ in range(10):
    work()
for line in sys.stdin:
    count, used, start = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() < start + float(line):
        work()
        count += size
    seconds, used = time.perf_counter() - start, time.process_time() - used
    print(json.dumps({"rate": count / seconds, "cpu": used / count * 1e3}), flush=True)
