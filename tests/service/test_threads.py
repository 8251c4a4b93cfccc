"""How many threads a service's frameworks start: as many as its container has CPUs."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import sleep

import pytest

from tests.support.environments import environment, run
from tests.support.live import live
from tests.support.rendering import render

SETTINGS = ("NUM_THREADS", "OMP_NUM_THREADS", "WORKERS")
CGROUPS = Path("/sys/fs/cgroup")
# /proc/self/cgroup, then what the files of the groups hold, then the CPUs that this grants. A
# container's own group is the top; where it shares the host's names, its path is the host's.
TREES = [
    ("", {}, "inf"),
    ("0::/\n", {}, "inf"),
    ("0::/\n", {"": "max 100000"}, "inf"),
    ("0::/\n", {"": "150000 100000"}, "1.5"),
    ("0::/a.slice/b.scope\n", {"a.slice/b.scope": "400000 200000"}, "2.0"),
    ("0::/a/b\n", {"a/b": "max 100000", "a": "50000 100000"}, "0.5"),
    ("0::/a/b\n", {"": "max 100000", "a": "400000 100000", "a/b": "300000 100000"}, "3.0"),
    ("0::/../b\n", {"": "150000 100000"}, "1.5"),
    ("7:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n", {"cpu": "-1 100000"}, "inf"),
    ("7:cpu,cpuacct:/docker/abc\n", {"cpu": "250000 100000"}, "2.5"),
    ("5:cpuset:/\n4:cpu:/a/b\n", {"cpu": "-1 100000", "cpu/a/b": "50000 50000"}, "1.0"),
]
# Of each framework: its environment, the service's answers, and code that loads the stock model and
# has its threads work.
LOAD = "from main import service; service.runner.load()"
TORCH = "import torch; x = torch.rand(900, 900); x @ x"
PADDLE = "import device; x = device.import_paddle().rand([900, 900]); float((x @ x).sum())"
ANSWER = "service.runner.answer([service.runner.example])"
FRAMEWORKS: dict[str, tuple[str, dict[str, str], str]] = {
    "torch": ("pytorch", {"model_type": "pytorch"}, f"{LOAD}; {TORCH}"),
    "onnxruntime": ("onnxruntime", {"model_type": "onnxruntime"}, LOAD),
    "rapidocr": ("rapidocr", {"preset": "rapidocr"}, LOAD),
    "paddle": ("paddle", {"model_type": "paddle"}, f"{LOAD}; {PADDLE}"),
    "llama.cpp": ("ggml", {"model_type": "ggml", "input_kind": "json"}, f"{LOAD}; {ANSWER}"),
    "whisper.cpp": ("ggml", {"model_type": "ggml", "input_kind": "audio"}, f"{LOAD}; {ANSWER}"),
}
COUNT = """
import os, sys
from pathlib import Path

def threads():
    return len(os.listdir("/proc/self/task"))

sys.path[:0] = [".", "tests"]
if Path("tests/checkpoint.py").exists():
    from checkpoint import make_checkpoint
    os.environ["MODEL_NAME"] = str(make_checkpoint(Path.cwd()))
{code}
print(threads())
"""


def python(stack: str = "custom") -> str:
    """Return the interpreter of a stack."""
    return str(environment(stack) / "bin" / "python")


def settings(**env: str) -> dict[str, str]:
    """Return the environment with these settings of threads, and no others."""
    return {name: text for name, text in os.environ.items() if name not in SETTINGS} | env


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render the lightest service that can run as several processes."""
    answers = {"model_type": "custom", "features": ["replicas"]}
    return render(tmp_path_factory.mktemp("project"), answers)


@pytest.fixture
def half_a_cpu() -> Iterator[Path]:
    """Make a cgroup that grants half a CPU, where this machine lets us."""
    v2 = (CGROUPS / "cgroup.controllers").exists()
    group = (CGROUPS if v2 else CGROUPS / "cpu") / f"test-threads-{os.getpid()}"
    try:
        group.mkdir()
        try:
            if v2:
                (group / "cpu.max").write_text("50000 100000")
            else:
                (group / "cpu.cfs_quota_us").write_text("50000")
            yield group
        finally:
            for _ in range(50):  # until the kernel has seen that the processes are gone
                with suppress(OSError):
                    group.rmdir()
                    break
                sleep(0.1)
    except (OSError, PermissionError) as error:
        pytest.skip(f"no cgroup with a quota can be made here: {error}")


def test_quota(tmp_path: Path, project: Path) -> None:
    """The least limit counts of those of the process's group and of the groups above it."""
    for index, (own, groups, _) in enumerate(TREES):
        root = tmp_path / str(index)
        (root / "sys/fs/cgroup").mkdir(parents=True)
        if own:
            (root / "proc/self").mkdir(parents=True)
            (root / "proc/self/cgroup").write_text(own)
        for name, text in groups.items():
            folder = root / "sys/fs/cgroup" / name
            folder.mkdir(parents=True, exist_ok=True)
            if name.startswith("cpu"):
                quota, period = text.split()
                (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
                (folder / "cpu.cfs_period_us").write_text(f"{period}\n")
            else:
                (folder / "cpu.max").write_text(f"{text}\n")
    code = """
import sys
from pathlib import Path
from serving.threads import cpu_quota
for root in range(int(sys.argv[2])):
    print(cpu_quota(Path(sys.argv[1], str(root))))
"""
    answer = run([python(), "-c", code, str(tmp_path), str(len(TREES))], cwd=project)
    assert answer.split() == [expected for *_, expected in TREES]


@pytest.mark.parametrize(
    ("env", "cpus", "quota", "expected"),
    [
        ({}, 8, "inf", "8 8 CPUs"),
        ({}, 8, "2.5", "3 the CPU quota of 2.5"),
        ({}, 8, "0.1", "1 the CPU quota of 0.1"),
        ({}, 2, "64", "2 2 CPUs"),
        ({"WORKERS": "3"}, 8, "inf", "3 8 CPUs, for 3 workers"),
        ({"WORKERS": "3"}, 8, "2", "1 the CPU quota of 2, for 3 workers"),
        ({"NUM_THREADS": "5"}, 8, "2", "5 NUM_THREADS or OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "5"}, 8, "2", "5 NUM_THREADS or OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "7", "NUM_THREADS": "5"}, 8, "2", "5 NUM_THREADS or OMP_NUM_THREADS"),
    ],
)
def test_count(project: Path, env: dict[str, str], cpus: int, quota: str, expected: str) -> None:
    """The CPUs or the quota, whatever is less, rounded up, shared by the workers; or a setting."""
    code = f"""
import os
from serving import threads
threads.cpu_count = lambda: {cpus}
threads.cpu_quota = lambda: float("{quota}")
print(*threads.count_threads(threads.settings.workers))
"""
    assert run([python(), "-c", code], cwd=project, env=settings(**env)) == f"{expected}\n"


def test_real_quota(tmp_path: Path, project: Path, half_a_cpu: Path) -> None:
    """A service that runs in a cgroup with a quota says so, and starts one thread."""
    script = tmp_path / "main.sh"
    script.write_text(
        f"unset {' '.join(SETTINGS)}\n"
        f"echo $$ > {half_a_cpu}/cgroup.procs\n"
        f"exec {python()} main.py\n"
    )
    with live(project, "/bin/sh", tmp_path / "log", script=str(script)) as service:
        service.ready()
        assert "Threads: 1, limited by the CPU quota of 0.5\n" in service.log


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_framework(tmp_path: Path, name: str) -> None:
    """The framework follows NUM_THREADS: with 2 the process has more threads than with 1."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("on one CPU, some frameworks start no second thread")
    stack, answers, code = FRAMEWORKS[name]
    project = render(tmp_path / "project", answers)
    command = [python(stack), "-c", COUNT.replace("{code}", code)]
    one, two = (
        int(run(command, cwd=project, env=settings(NUM_THREADS=number)).split()[-1])
        for number in ("1", "2")
    )
    assert two > one


@pytest.mark.parametrize("number", [1, 2])
def test_loaded_before(tmp_path: Path, number: int) -> None:
    """NumPy, which inference.py has imported by then, computes on NUM_THREADS threads, too."""
    project = render(tmp_path / "project", {"model_type": "custom"})
    info = "from threadpoolctl import threadpool_info"
    code = f"{LOAD}; {info}; print(max(pool['num_threads'] for pool in threadpool_info()))"
    printed = run([python(), "-c", code], cwd=project, env=settings(NUM_THREADS=str(number)))
    assert int(printed.split()[-1]) == number
