"""Many services at once: the script of how-to/update.md, over repositories as GitHub has them."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.rendering import commit_all, git
from tests.support.updating import append, python, render, template_repository
from tests.support.variants import ROOT

# Clones from the folder of repositories, and writes down what a pull request is made of.
GH = """\
case "$1 $2" in
    "repo clone") exec git clone --quiet "$REMOTES/$3" "$4" ;;
    "pr create")
        echo "REQUEST $(git remote get-url origin) $*" >> "$REMOTES/requests.txt"
        cat "${@: -1}" >> "$REMOTES/requests.txt"
        ;;
esac
"""


def scripts() -> tuple[str, str]:
    """Return update-one.sh, and the loop around it."""
    text = (ROOT / "docs" / "how-to" / "update.md").read_text(encoding="utf-8")
    section = text.partition("## Forty services")[2]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    [one] = [block for block in blocks if "gh pr create" in block]
    [loop] = [block for block in blocks if "update-one.sh" in block]
    return one, loop


def command(folder: Path, name: str, body: str) -> None:
    """Write a command of this name."""
    file = folder / name
    file.write_text(f"#!/usr/bin/env bash\nset -euo pipefail\n{body}", encoding="utf-8")
    file.chmod(0o755)


def second_version(template: Path) -> None:
    """Add a line at the end of a module."""
    append(template / "template" / "serving" / "worker.py", "# Of version 2\n")


def test_pull_requests(tmp_path: Path) -> None:
    """Who is behind gets one, as a draft where a person is needed; who fails stops nobody."""
    template = template_repository(tmp_path / "template", second_version)
    remotes, bin_folder = tmp_path / "remotes", tmp_path / "bin"
    bin_folder.mkdir()
    for name, version in (("behind", 1), ("edited", 1), ("current", 2)):
        project = render(template, remotes / name, version, model_type="custom")
        if name == "edited":
            append(project / "serving" / "worker.py", "# Mine\n")
        commit_all(project, "Work")
    command(bin_folder, "gh", GH)
    command(bin_folder, "uvx", f'exec "{sys.executable}" -m "$@"\n')
    # Nothing is locked or installed: the tests run where everything is.
    command(bin_folder, "uv", f'if [[ $1 = run ]]; then exec "{python()}" -m "${{@:2}}"; fi\n')
    one, loop = scripts()
    (tmp_path / "update-one.sh").write_text(one, encoding="utf-8")
    (tmp_path / "services.txt").write_text("missing\nedited\ncurrent\nbehind\n", encoding="utf-8")
    env = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "REMOTES": str(remotes),
        "TMPDIR": str(tmp_path),
    }
    subprocess.run(["bash", "-c", loop], cwd=tmp_path, env=env, check=True)
    requests = (remotes / "requests.txt").read_text(encoding="utf-8")
    edited, behind = requests.split("REQUEST ")[1:]
    assert edited.startswith(f"{remotes}/edited pr create --draft --title Update the template to 2")
    assert "Solve the conflicts of the update in serving/worker.py" in edited
    assert behind.startswith(f"{remotes}/behind pr create --title Update the template to 2.0.0 ")
    assert " failed" not in behind
    for name in ("behind", "edited"):
        worker = git(remotes / name, "show", "template-2.0.0:serving/worker.py")
        assert worker.count("# Of version 2\n") == 1
        assert ("<<<<<<<" in worker) == (name == "edited")
    assert git(remotes / "current", "branch", "--list").split() == ["*", "main"]
    assert (tmp_path / "failed.txt").read_text(encoding="utf-8") == "missing\n"
