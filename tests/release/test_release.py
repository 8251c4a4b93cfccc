"""`make release`, in repositories made of this one's files, with a stand-in for the tests."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.rendering import commit_all, git
from tests.support.variants import ROOT

FILES = (
    "CHANGELOG.md",
    "Makefile",
    "README.md",
    "copier.yml",
    "docs/reference/spec.md",
    "pyproject.toml",
    "tools/release.py",
)
# Where the version is written down.
VERSION_IN = {
    "copier.yml": r'(?m)(?<=^spec_version:\n  type: str\n  when: false\n  default: ")[^"]*',
    "docs/reference/spec.md": r"(?m)(?<=^Version ).*(?=\.$)",
    "pyproject.toml": r'(?m)(?<=^version = ")[^"]*',
}
NONE = "none"


@dataclass
class Repository:
    """A repository of the template, and a file that the stand-in for the tests leaves behind."""

    folder: Path
    mark: Path

    def read(self, file: str) -> str:
        """Return the text of a file."""
        return (self.folder / file).read_text(encoding="utf-8")

    def change(self, file: str, pattern: str, new: str) -> None:
        """Replace what fits a pattern, which has to be there."""
        text, count = re.subn(pattern, lambda _: new, self.read(file), count=1)
        assert count == 1, f"{pattern} is not in {file}"
        (self.folder / file).write_text(text, encoding="utf-8")

    def add(self, number: int) -> None:
        """Add a requirement to the specification."""
        section = f"\n### MS-{number} Another\n\n* Demand: one more thing.\n"
        self.change("docs/reference/spec.md", r"\Z", section)

    def remove(self, number: int) -> None:
        """Take a requirement out of the specification."""
        self.change("docs/reference/spec.md", rf"(?ms)^### MS-{number} .*?(?=^##|\Z)", "")

    def set_version(self, version: str) -> None:
        """Write the version into every file that names it."""
        for file, pattern in VERSION_IN.items():
            self.change(file, pattern, version)

    def tell(self, came: str = NONE, changed: str = NONE, went: str = NONE) -> None:
        """Write something new into the changelog."""
        news = f"* Came: {came}.\n* Changed: {changed}.\n* Went: {went}.\n* To do: nothing.\n"
        self.change("CHANGELOG.md", r"(?m)^## Unreleased\n", f"## Unreleased\n\n{news}")

    def prepare(self, version: str, **news: str) -> None:
        """Make everything ready for a version."""
        self.set_version(version)
        self.tell(**news)
        commit_all(self.folder, "Prepare")

    def release(self, *variables: str) -> subprocess.CompletedProcess[str]:
        """Run `make release` with these variables."""
        own = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VERSION", "GATE", "CHECK"}
        environ = {name: value for name, value in os.environ.items() if name not in own}
        environ |= {f"GIT_{who}_NAME": "Test" for who in ("AUTHOR", "COMMITTER")}
        environ |= {f"GIT_{who}_EMAIL": "test@example.org" for who in ("AUTHOR", "COMMITTER")}
        environ["GIT_CONFIG_GLOBAL"] = os.devnull
        settings = [f"PYTHON={sys.executable}", f"GATE=touch {self.mark}", *variables]
        return subprocess.run(
            ["make", "--no-print-directory", "release", *settings],
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def state(self) -> tuple[str, ...]:
        """Return what a release that did not happen leaves as it was."""
        git_state = (
            git(self.folder, *command.split())
            for command in ("rev-parse HEAD", "tag", "status --porcelain")
        )
        return (*git_state, self.read("CHANGELOG.md"))


@pytest.fixture(scope="module")
def unreleased(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository that has never been released."""
    folder = tmp_path_factory.mktemp("unreleased")
    repository = Repository(folder / "template", folder / "gate")
    for file in FILES:
        (repository.folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, repository.folder / file)
    repository.change("CHANGELOG.md", r"(?ms)^## .*", "## Unreleased\n")
    numbers = requirements(repository)
    repository.prepare("1.0.0", came=f"MS-1 to MS-{max(numbers)}")
    return repository


@pytest.fixture(scope="module")
def released(unreleased: Repository, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with one version, made by the command."""
    repository = copy(unreleased, tmp_path_factory.mktemp("released"))
    result = repository.release("VERSION=1.0.0")
    assert result.returncode == 0, result.stderr
    repository.mark.unlink()
    return repository


def copy(repository: Repository, folder: Path) -> Repository:
    """Return a copy of a repository."""
    shutil.copytree(repository.folder, folder / "template")
    return Repository(folder / "template", folder / "gate")


@pytest.fixture
def first(unreleased: Repository, tmp_path: Path) -> Repository:
    """Return a repository that is ready for its first version."""
    return copy(unreleased, tmp_path)


@pytest.fixture
def repository(released: Repository, tmp_path: Path) -> Repository:
    """Return a repository with one version."""
    return copy(released, tmp_path)


def requirements(repository: Repository) -> list[int]:
    """Return the numbers in the specification."""
    found = re.findall(r"(?m)^### MS-(\d+) ", repository.read("docs/reference/spec.md"))
    return [int(number) for number in found]


def following(repository: Repository) -> int:
    """Return the first number that is free."""
    return max(requirements(repository)) + 1


def test_first_release(first: Repository, tmp_path: Path) -> None:
    """The changelog's news get version and date, in a commit with an annotated tag."""
    remote = tmp_path / "remote"
    git(tmp_path, "init", "--quiet", "--bare", str(remote))
    git(first.folder, "remote", "add", "origin", str(remote))
    result = first.release("VERSION=1.0.0")
    assert result.returncode == 0, result.stderr
    assert first.mark.exists()
    today = time.strftime("%Y-%m-%d", time.gmtime())
    heading = f"\n## Unreleased\n\n## 1.0.0 - {today}\n\n* Came: MS-1 to MS-"
    assert heading in first.read("CHANGELOG.md")
    assert git(first.folder, "status", "--porcelain") == ""
    assert git(first.folder, "log", "-1", "--format=%s") == "Release 1.0.0\n"
    assert git(first.folder, "diff", "--name-only", "HEAD~1") == "CHANGELOG.md\n"
    assert git(first.folder, "cat-file", "-t", "v1.0.0") == "tag\n"
    assert git(first.folder, "rev-parse", "v1.0.0^{}") == git(first.folder, "rev-parse", "HEAD")
    assert "* Came: MS-1 to MS-" in git(first.folder, "tag", "--list", "--format=%(contents)")
    # Nothing is pushed, until somebody does what was printed.
    assert git(remote, "for-each-ref") == ""
    push = result.stdout.splitlines()[-1].split()
    assert push[:2] == ["git", "push"]
    git(first.folder, *push[1:])
    published = git(remote, "for-each-ref", "--format=%(refname)").split()
    assert published == ["refs/heads/main", "refs/tags/v1.0.0"]


def test_minor_release(repository: Repository) -> None:
    """A requirement that came is a minor version, above the one before in the changelog."""
    number = following(repository)
    repository.add(number)
    repository.prepare("1.1.0", came=f"MS-{number}")
    result = repository.release("VERSION=1.1.0")
    assert result.returncode == 0, result.stderr
    headings = re.findall(r"(?m)^## (\S+)", repository.read("CHANGELOG.md"))
    assert headings == ["Unreleased", "1.1.0", "1.0.0"]
    assert git(repository.folder, "tag").split() == ["v1.0.0", "v1.1.0"]


def test_major_release(repository: Repository) -> None:
    """A requirement that went is a major version."""
    repository.remove(7)
    repository.prepare("2.0.0", went="MS-7")
    assert repository.release("VERSION=2.0.0").returncode == 0


def test_patch_release(repository: Repository) -> None:
    """Other line breaks in a demand change nothing, so that a patch will do."""
    demand = re.search(r"(?m)^\* Demand: .+(\n  .+)+", repository.read("docs/reference/spec.md"))
    assert demand
    repository.change("docs/reference/spec.md", re.escape(demand[0]), " ".join(demand[0].split()))
    repository.prepare("1.0.1")
    result = repository.release("VERSION=1.0.1")
    assert result.returncode == 0, result.stderr


def test_check_writes_nothing(repository: Repository) -> None:
    """With CHECK=1 everything is checked, the tests included, and nothing written."""
    repository.prepare("1.0.1")
    before = repository.state()
    result = repository.release("VERSION=1.0.1", "CHECK=1")
    assert result.returncode == 0, result.stderr
    assert "1.0.1 can be released. Nothing was written." in result.stdout
    assert repository.mark.exists()
    assert repository.state() == before
    assert repository.release("VERSION=1.0.1", "CHECK=1", "GATE=false").returncode != 0


def test_failing_gate_leaves_nothing(repository: Repository) -> None:
    """Where the tests fail, there is no trace of a release."""
    repository.prepare("1.0.1")
    before = repository.state()
    result = repository.release("VERSION=1.0.1", "GATE=false")
    assert result.returncode != 0
    assert "'false' failed, see above. Mend that first." in result.stderr
    assert repository.state() == before


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("touch left-behind", "?? left-behind"),
        ("git -c user.name=T -c user.email=t@e.org commit -q --allow-empty -m x", "new commits"),
    ],
    ids=["file", "commit"],
)
def test_change_while_the_gate_runs(repository: Repository, gate: str, message: str) -> None:
    """What was not tested is not tagged."""
    repository.prepare("1.0.1")
    result = repository.release("VERSION=1.0.1", f"GATE={gate}")
    assert result.returncode != 0
    assert message in result.stderr
    assert git(repository.folder, "tag") == "v1.0.0\n"


def test_commit_that_is_refused(repository: Repository) -> None:
    """Where git refuses the commit, nothing is left of the release."""
    repository.prepare("1.0.1")
    hook = repository.folder / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho Not today. >&2\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    before = repository.state()
    result = repository.release("VERSION=1.0.1")
    assert result.returncode != 0
    assert "Not today." in result.stderr
    assert repository.state() == before


def test_tag_that_is_refused(repository: Repository) -> None:
    """So it is where git cannot make the tag: the commit goes too."""
    repository.prepare("1.0.1")
    git(repository.folder, "config", "tag.gpgSign", "true")
    git(repository.folder, "config", "gpg.program", "false")
    before = repository.state()
    result = repository.release("VERSION=1.0.1")
    assert result.returncode != 0
    assert "git failed" in result.stderr
    assert repository.state() == before


@pytest.mark.parametrize("version", ["", "v1.1.0", "1.1", "1.1.0-rc.1", "01.1.0", "next"])
def test_no_version(repository: Repository, version: str) -> None:
    """Three numbers, and nothing else."""
    message = f"'{version}' is no version. Give three numbers, e.g. make release VERSION=1.1.0."
    assert_refused(repository, version, message)


@pytest.mark.parametrize("version", ["1.0.0", "0.9.9"])
def test_not_newer(repository: Repository, version: str) -> None:
    """A version comes after the newest tag."""
    repository.prepare(version)
    message = f"{version} is not newer than v1.0.0. After that come 1.0.1, 1.1.0 or 2.0.0."
    assert_refused(repository, version, message)


def test_newest_tag_by_number(repository: Repository) -> None:
    """1.10.0 is newer than 1.9.0, and other tags do not count."""
    for tag in ("v1.9.0", "v1.10.0", "v2.0.0-rc.1", "very-old", "3.0.0"):
        git(repository.folder, "tag", tag)
    repository.prepare("1.9.1")
    assert_refused(repository, "1.9.1", "1.9.1 is not newer than v1.10.0.")


@pytest.mark.parametrize("file", VERSION_IN)
def test_another_version_is_written_down(repository: Repository, file: str) -> None:
    """Each place that names the version has to name this one."""
    repository.set_version("1.0.1")
    repository.change(file, VERSION_IN[file], "1.0.0")
    repository.tell()
    commit_all(repository.folder, "Prepare")
    message = f"{file} says version 1.0.0. Change it to 1.0.1, or release that one."
    assert_refused(repository, "1.0.1", message)


def test_every_refusal_is_told_at_once(repository: Repository) -> None:
    """Who has forgotten several things need not find them one by one."""
    result = repository.release("VERSION=1.0.1")
    for file in VERSION_IN:
        assert f"{file} says version 1.0.0" in result.stderr
    assert "CHANGELOG.md says nothing under '## Unreleased'" in result.stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "README.md").unlink(), " D README.md"),
        (lambda folder: (folder / "notes.txt").touch(), "?? notes.txt"),
        (
            lambda folder: git(folder, "switch", "--quiet", "--create", "topic"),
            "This is topic, not main: git switch main.",
        ),
        (
            lambda folder: git(folder, "checkout", "--quiet", "--detach"),
            "This is no branch, not main: git switch main.",
        ),
        (
            lambda folder: git(folder, "tag", "--delete", "v1.0.0"),
            "1.0.0, the newest tag is none. Is a tag missing? git fetch --tags.",
        ),
    ],
    ids=["changed", "untracked", "branch", "detached", "tag"],
)
def test_state(repository: Repository, make: Callable[[Path], object], message: str) -> None:
    """Only what is committed on the main branch is released, where all the tags are."""
    repository.prepare("1.0.1")
    make(repository.folder)
    assert_refused(repository, "1.0.1", message)


def test_came_is_no_patch(repository: Repository) -> None:
    """A new requirement is at least a minor version."""
    number = following(repository)
    repository.add(number)
    repository.prepare("1.0.1", came=f"MS-{number}")
    message = (
        f"1.0.1 is too small a step: since v1.0.0 there came MS-{number}, changed none and went "
        "none. Take 1.1.0."
    )
    assert_refused(repository, "1.0.1", message)


def test_went_is_no_minor(repository: Repository) -> None:
    """A requirement that is gone is a major version."""
    repository.remove(7)
    repository.prepare("1.1.0", went="MS-7")
    assert_refused(repository, "1.1.0", "and went MS-7. Take 2.0.0.")


def test_changed_is_no_patch(repository: Repository) -> None:
    """So is a requirement that asks something else at least a minor version."""
    repository.change("docs/reference/spec.md", r"(?<=\* Demand: )(?=\S)", "strictly, ")
    repository.prepare("1.0.1", changed="MS-1")
    assert_refused(repository, "1.0.1", "changed MS-1 and went none. Take 1.1.0.")


@pytest.mark.parametrize(
    ("news", "message"),
    [
        (
            {},
            "CHANGELOG.md says 'Came: none'. By docs/reference/spec.md it is MS-{}, since v1.0.0.",
        ),
        (
            {"came": "MS-{}, MS-90 to MS-93 and MS-95"},
            (
                "says 'Came: MS-{}, MS-90 to MS-93, MS-95'. "
                "By docs/reference/spec.md it is MS-{}, since"
            ),
        ),
        (
            {"came": "MS-{}", "went": "MS-7"},
            "says 'Went: MS-7'. By docs/reference/spec.md it is none, since",
        ),
        (
            {"came": "MS-{}", "changed": "MS-{}"},
            "CHANGELOG.md says that MS-{} changed. Only a requirement that was there before",
        ),
    ],
    ids=["came-untold", "came-invented", "went-invented", "changed-is-new"],
)
def test_changelog_tells_what_happened(
    repository: Repository, news: dict[str, str], message: str
) -> None:
    """The numbers in the changelog are those that came, changed and went."""
    number = following(repository)
    repository.add(number)
    filled = {label: text.replace("{}", str(number)) for label, text in news.items()}
    repository.prepare("1.1.0", **filled)
    assert_refused(repository, "1.1.0", message.replace("{}", str(number)))


def test_change_is_told(repository: Repository) -> None:
    """A demand that reads differently is told as a change."""
    repository.change("docs/reference/spec.md", r"(?<=\* Demand: )(?=\S)", "strictly, ")
    repository.prepare("1.1.0")
    message = "MS-1 asks something else since v1.0.0: add it to 'Changed' in CHANGELOG.md."
    assert_refused(repository, "1.1.0", message)
    repository.change("CHANGELOG.md", r"(?<=Changed: )none", "MS-1")
    commit_all(repository.folder, "Tell")
    assert repository.release("VERSION=1.1.0").returncode == 0


def test_went_is_told(repository: Repository) -> None:
    """A requirement does not disappear without a word."""
    repository.remove(7)
    repository.prepare("2.0.0")
    assert_refused(
        repository, "2.0.0", "says 'Went: none'. By docs/reference/spec.md it is MS-7, since"
    )


@pytest.mark.parametrize("label", ["Came", "Changed", "Went", "To do"])
def test_changelog_says_all(repository: Repository, label: str) -> None:
    """Each version says what came, changed and went, and what there is to do."""
    repository.prepare("1.0.1")
    repository.change("CHANGELOG.md", rf"(?m)^\* {label}: .*\n", "")
    commit_all(repository.folder, "Forget")
    assert_refused(repository, "1.0.1", f"CHANGELOG.md: add a line '* {label}: …' with ")


def test_nothing_is_told(repository: Repository) -> None:
    """A version has something to say of itself."""
    repository.set_version("1.0.1")
    commit_all(repository.folder, "Prepare")
    message = "CHANGELOG.md says nothing under '## Unreleased'. Write there what is new."
    assert_refused(repository, "1.0.1", message)


def test_number_that_was_used_before(repository: Repository) -> None:
    """The number of a requirement that is gone stays with it, for all versions to come."""
    number = max(requirements(repository))
    repository.remove(number)
    repository.prepare("2.0.0", went=f"MS-{number}")
    assert repository.release("VERSION=2.0.0").returncode == 0
    repository.mark.unlink()
    repository.add(number)
    repository.prepare("2.1.0", came=f"MS-{number}")
    message = (
        f"MS-{number} is new in docs/reference/spec.md, but numbers up to MS-{number} were given "
        f"away before. Take MS-{number + 1}."
    )
    assert_refused(repository, "2.1.0", message)


def test_number_that_is_used_twice(repository: Repository) -> None:
    """Two requirements do not share a number."""
    repository.add(7)
    repository.prepare("1.0.1")
    message = "docs/reference/spec.md has 2 requirements MS-7. Each needs a number of its own."
    assert_refused(repository, "1.0.1", message)


def assert_refused(repository: Repository, version: str, message: str) -> None:
    """Assert that there is no release, that the reason is told, and that nothing was done."""
    before = repository.state()
    result = repository.release(f"VERSION={version}")
    assert result.returncode != 0, result.stdout
    assert message in result.stderr
    assert "release: nothing was written." in result.stderr
    assert "Traceback" not in result.stderr
    assert not repository.mark.exists()
    assert repository.state() == before


def test_this_repository_is_ready() -> None:
    """The three places name one version, and the changelog has the form that it needs."""
    here = Repository(ROOT, ROOT)
    versions = {match[0] for file in VERSION_IN if (match := find(here, file))}
    assert len(versions) == 1
    headings = re.findall(r"(?m)^## (.+)$", here.read("CHANGELOG.md"))
    assert headings[0] == "Unreleased"
    for heading in headings[1:]:
        assert re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", heading)


def find(repository: Repository, file: str) -> re.Match[str]:
    """Return where a file names the version."""
    match = re.search(VERSION_IN[file], repository.read(file))
    assert match, file
    return match
