"""`make demo`, from nothing to a page with boxes on it, and the ways in which it can fail."""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import wave
from array import array
from pathlib import Path

import pytest

from tests.support.variants import ROOT, table

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("demo")

KNOWN_LINES = (
    "Region-based segmentation",
    "Let us first determine markers of the coins and the",
    "background. These markers are pixels that we can label",
    "histogram of grey values:",
)


def copy_checkout(target: Path) -> Path:
    """Copy what the demo reads of the checkout, so that it starts from nothing."""
    for folder in ("template", "parts", "tools"):
        shutil.copytree(ROOT / folder, target / folder)
    shutil.copy(ROOT / "copier.yml", target)
    return target


def start(checkout: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """Start the demo in this checkout."""
    return subprocess.Popen(
        [sys.executable, checkout / "tools/demo.py", *(arguments or ["rapidocr"])],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(demo: subprocess.Popen[str], checkout: Path) -> tuple[int, str, str]:
    """Wait for the demo, of which nothing may be left running; return status, output and errors."""
    output, errors = demo.communicate(timeout=600)
    processes = subprocess.check_output(["ps", "-ww", "-eo", "pid,args"], text=True).splitlines()
    assert [line for line in processes if str(checkout) in line] == []
    return demo.returncode, output, errors


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have the demo run once in a fresh checkout."""
    fresh = copy_checkout(tmp_path_factory.mktemp("checkout"))
    status, output, errors = finish(start(fresh), fresh)
    assert status == 0, output + errors
    for line in KNOWN_LINES:
        assert line in output
    assert errors == ""
    return fresh


def test_page_with_boxes(checkout: Path) -> None:
    """The page is a real picture, and the boxes are drawn on an enlarged copy of it."""
    page, boxes = checkout / ".demo/page.png", checkout / ".demo/page-with-boxes.png"
    assert page.read_bytes().startswith(b"\x89PNG")
    assert boxes.read_bytes().startswith(b"\x89PNG")
    assert page.read_bytes() != boxes.read_bytes()
    script = """if True:
        import sys
        from PIL import Image
        page, boxes = map(Image.open, sys.argv[1:])
        assert boxes.size == (3 * page.width, 3 * page.height)
        red = sum(n for n, rgb in boxes.getcolors(maxcolors=1 << 24) if rgb == (214, 39, 40))
        assert red > 10_000, red
    """
    python = checkout / ".demo/reads-text/.venv/bin/python"
    subprocess.run([python, "-c", script, page, boxes], check=True)


def test_another_preset(checkout: Path) -> None:
    """A preset is asked its own example, and what it answers is printed."""
    status, output, errors = finish(start(checkout, "iris"), checkout)
    assert status == 0, output + errors
    assert "setosa" in output
    assert errors == ""


def test_answer_of_a_service_that_was_killed(checkout: Path) -> None:
    """The service is killed while it reads the page, and its text is there after the next start."""
    status, output, errors = finish(start(checkout, "rapidocr", "local"), checkout)
    assert status == 0, output + errors
    assert output.index("killing the service") < output.index("Starting the service again")
    for line in KNOWN_LINES:
        assert line in output
    log = (checkout / ".demo/service.log").read_text()
    assert "begins, attempt 2" in log


def test_answer_that_is_a_file(checkout: Path) -> None:
    """A recording with noise is sent, and one without lies where the demo says."""
    status, output, errors = finish(start(checkout, "rnnoise"), checkout)
    assert status == 0, output + errors
    assert errors == ""
    assert " .demo/noisy-speech.wav, with noise\n" in output
    assert " .demo/clean.wav, without\n" in output
    noisy, clean = (
        pause_of(checkout / ".demo" / f"{name}.wav") for name in ("noisy-speech", "clean")
    )
    assert noisy > 300
    assert clean < 10


def pause_of(recording: Path) -> float:
    """Return the mean height of the samples between the example's sentences."""
    with wave.open(str(recording)) as reader:
        reader.setpos(int(2.3 * reader.getframerate()))
        samples = array("h", reader.readframes(reader.getframerate() // 2))
    return statistics.fmean(map(abs, samples))


def test_every_preset_has_one(tmp_path: Path) -> None:
    """What is no preset ends with the names of all presets."""
    status, _, errors = finish(start(copy_checkout(tmp_path), "nothing"), tmp_path)
    assert status == 1
    assert errors.startswith("demo: There is no preset 'nothing': use PRESET=")
    names = errors.strip().rstrip(".").partition("PRESET=")[2].split(", ")
    assert sorted(names) == sorted(table("presets"))


def test_interrupted(checkout: Path) -> None:
    """Ctrl-C stops the service too."""
    log = checkout / ".demo/service.log"
    log.unlink()
    demo = start(checkout)
    while demo.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    demo.send_signal(signal.SIGINT)
    status, _, errors = finish(demo, checkout)
    assert status == 130
    assert errors == "demo: stopped, and the service with it.\n"


def test_broken_service(checkout: Path) -> None:
    """The template is rendered anew; a service that does not start is told with its log."""
    main = checkout / "template/main.py.jinja"
    whole = main.read_text()
    main.write_text(whole.replace("configure_logging()\n", "raise SystemExit('no weights')\n"))
    status, _, errors = finish(start(checkout), checkout)
    main.write_text(whole)
    assert status == 1
    *told, last = errors.splitlines()
    assert "no weights" in told
    assert last.startswith("demo: The service exited with 1 while it started.")


def test_no_index(tmp_path: Path) -> None:
    """Without a package index, the last line says so."""
    fresh = copy_checkout(tmp_path)
    status, _, errors = finish(start(fresh, PIP_NO_INDEX="1", PIP_FIND_LINKS=""), fresh)
    assert status == 1
    assert errors.splitlines()[-1].startswith(
        "demo: pip install did not succeed: see above. Is a package index"
    )
