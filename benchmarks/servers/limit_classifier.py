"""Decoding and running with no service around it, for SECONDS: the limit that the model sets."""

import json
import os
import time
from pathlib import Path

from classifier import Classifier, decode

file = Path(os.environ["EXAMPLE"]).read_bytes()
classifier = Classifier()
for _ in range(100):
    classifier.run(decode(file))
count, used, start = 0, time.process_time(), time.perf_counter()
while time.perf_counter() < start + float(os.environ["SECONDS"]):
    classifier.run(decode(file))
    count += 1
seconds, used = time.perf_counter() - start, time.process_time() - used
print(json.dumps({"rate": count / seconds, "cpu": used / count * 1e3}))
