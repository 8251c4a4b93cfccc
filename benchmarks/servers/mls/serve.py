"""Starts MLServer: no worker processes, which would be a hand-over for nothing on one core."""

import os
import socket
import sys
from pathlib import Path


def free_port() -> str:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


os.environ.update(
    MLSERVER_HOST="127.0.0.1",
    MLSERVER_HTTP_PORT=os.environ["PORT"],
    MLSERVER_GRPC_PORT=free_port(),
    MLSERVER_PARALLEL_WORKERS="0",
    MLSERVER_DEBUG="false",  # the access log too
    MLSERVER_METRICS_ENDPOINT="",
    MLSERVER_GZIP_ENABLED="false",
)
program = str(Path(sys.executable).with_name("mlserver"))
os.execv(program, [program, "start", str(Path(__file__).parent)])  # noqa: S606
