"""The service around your model. It is the template's: `copier update` replaces what is in here.

These names are for inference.py and main.py:
- `Input`: one decoded request, which `Model.predict` gets a list of.
- `BadInput`: raise it for input that the model cannot take; the answer is a 400.
- `CannotLoad`: raise it in `Model.__init__` when one line tells the operator all there is to know.
- `NUM_THREADS`: how many threads a library may start.
- `File`, `Picture`, `Recording`, `Clip`: answers that are no JSON, or fields of one.

AGENTS.md says what each module is for.
"""

from serving.errors import BadInput, CannotLoad
from serving.inputs import Input
from serving.media import Clip, Recording
from serving.outputs import File, Picture
from serving.threads import NUM_THREADS

__all__ = [
    "NUM_THREADS",
    "BadInput",
    "CannotLoad",
    "Clip",
    "File",
    "Input",
    "Picture",
    "Recording",
]
