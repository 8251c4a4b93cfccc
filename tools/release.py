"""Tag a version of the template: `make release VERSION=1.1.0`.

docs/development/releasing.md says how.

It needs Python 3.11 or newer, and nothing that is installed.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

OLDEST_PYTHON = (3, 11)
if sys.version_info < OLDEST_PYTHON:
    sys.exit("release: Python 3.11 or newer is needed: make release PYTHON=python3.12 VERSION=…")

ROOT = Path(__file__).resolve().parents[1]
BRANCH = "main"
SPEC = "docs/reference/spec.md"
CHANGELOG = "CHANGELOG.md"
UNRELEASED = "## Unreleased\n"
# Where the version is written down, and how to find it there.
WRITTEN = {
    "copier.yml": r'^spec_version:\n(?:  .*\n)*?  default: "(.*)"$',
    SPEC: r"^Version (.*)\.$",
    "pyproject.toml": r'^version = "(.*)"$',
}
TELLS = {
    "Came": "the requirements that are new, e.g. MS-54 and MS-55, or none",
    "Changed": "the requirements that ask something else than before, or none",
    "Went": "the requirements that are gone, or none",
    "To do": "what the owner of a service does after `copier update`, or nothing",
}


class Version(NamedTuple):
    """A version of three numbers."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> "Version | None":
        """Return the version that a text is, if it is one."""
        match = re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", text)
        return cls(*map(int, match.groups())) if match else None

    def following(self) -> "list[Version]":
        """Return the next patch, minor and major version."""
        return [
            Version(self.major, self.minor, self.patch + 1),
            Version(self.major, self.minor + 1, 0),
            Version(self.major + 1, 0, 0),
        ]

    def __str__(self) -> str:
        return ".".join(map(str, self))


@dataclass
class Change:
    """What has become of the requirements since the newest version."""

    came: set[int]
    kept: set[int]
    went: set[int]
    reworded: set[int]


class Refused(Exception):  # noqa: N818 -- named after what happened
    """Each argument is a reason not to release, and says what would be right."""


def main() -> int:
    """Release, or say why not; return the exit status."""
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    parser.add_argument("version", help="three numbers, e.g. 1.1.0")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    parser.add_argument("--gate", default="make test", help="what has to pass (%(default)s)")
    arguments = parser.parse_args()
    try:
        version = check(arguments.version, arguments.gate)
        if arguments.dry_run:
            print(f"release: {version} can be released. Nothing was written.")
            return 0
        write(version)
    except Refused as refused:
        reasons = [*refused.args]
    except subprocess.CalledProcessError as error:
        reasons = [f"git failed:\n{error.stderr.rstrip()}"]
    else:
        print(f"release: {version} is committed and tagged here. To publish it:")
        print(f"  git push --atomic origin {BRANCH} v{version}")
        return 0
    for reason in [*reasons, "nothing was written."]:
        print(f"release: {reason}", file=sys.stderr)
    return 1


def check(text: str, gate: str) -> Version:
    """Return the version if it can be released: what is cheap to know first, then the gate."""
    last = next(iter(versions()), None)
    version = Version.parse(text)
    if version is None:
        right = last.following()[1] if last else "1.0.0"
        raise Refused(
            f"'{text}' is no version. Give three numbers, e.g. make release VERSION={right}."
        )
    refusals = [
        *refuse_state(),
        *refuse_version(version, last),
        *refuse_numbers(last),
        *refuse_changelog(last),
    ]
    if refusals := refusals or [*refuse_change(version, last)]:
        raise Refused(*refusals)

    print(f"release: running '{gate}'", flush=True)
    head = git("rev-parse", "HEAD")
    if subprocess.run(shlex.split(gate), cwd=ROOT, check=False).returncode != 0:
        raise Refused(f"'{gate}' failed, see above. Mend that first.")
    if git("rev-parse", "HEAD") != head:
        raise Refused(f"There are new commits since '{gate}' began. Run this again.")
    if refusals := [*refuse_state()]:
        raise Refused(*refusals)
    return version


def refuse_state() -> Iterator[str]:
    """Refuse what is not committed, and other branches."""
    if changes := git("status", "--porcelain"):
        yield f"The tree is not clean. Commit these, or put them aside:\n{changes}"
    branch = git("branch", "--show-current")
    if branch != BRANCH:
        yield f"This is {branch or 'no branch'}, not {BRANCH}: git switch {BRANCH}."


def refuse_version(version: Version, last: Version | None) -> Iterator[str]:
    """Refuse a version that is not new, or is not what is written down."""
    if last and version <= last:
        patch, minor, major = last.following()
        yield f"{version} is not newer than v{last}. After that come {patch}, {minor} or {major}."
    for file, pattern in WRITTEN.items():
        match = re.search(pattern, read(file), re.MULTILINE)
        if match is None:
            yield f"{file} names no version. It has to name {version}."
        elif match[1] != str(version):
            yield f"{file} says version {match[1]}. Change it to {version}, or release that one."


def refuse_numbers(last: Version | None) -> Iterator[str]:
    """Refuse numbers that are used twice, now or over time."""
    for number, count in Counter(number for number, _ in requirements(read(SPEC))).items():
        if count > 1:
            yield f"{SPEC} has {count} requirements MS-{number}. Each needs a number of its own."
    used = {number for version in versions() for number in dict(requirements(spec_of(version)))}
    came = change_since(last).came
    for number in sorted(came):
        if number <= max(used, default=0):
            yield (
                f"MS-{number} is new in {SPEC}, but numbers up to MS-{max(used)} were given away "
                f"before. Take MS-{max(used | came) + 1}."
            )


def refuse_changelog(last: Version | None) -> Iterator[str]:
    """Refuse a changelog that is not of the form, or that has other versions than the tags."""
    changelog = read(CHANGELOG)
    released = re.findall(r"^## (\S+) - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    if released[:1] != ([str(last)] if last else []):
        yield (
            f"The newest version in {CHANGELOG} is {released[0] if released else 'none'}, the "
            f"newest tag is {f'v{last}' if last else 'none'}. Is a tag missing? git fetch --tags."
        )
    section = unreleased(changelog)
    if not section:
        yield f"{CHANGELOG} says nothing under '{UNRELEASED.strip()}'. Write there what is new."
        return
    for label, meaning in TELLS.items():
        if not bullet(section, label):
            yield f"{CHANGELOG}: add a line '* {label}: …' with {meaning}."


def refuse_change(version: Version, last: Version | None) -> Iterator[str]:
    """Refuse a changelog that tells something else than happened, and a version too small."""
    section = unreleased(read(CHANGELOG))
    told = {label: numbers(bullet(section, label)) for label in TELLS}
    change = change_since(last)
    since = f"since v{last}" if last else "as the first version"
    for label, happened in (("Came", change.came), ("Went", change.went)):
        if told[label] != happened:
            yield (
                f"{CHANGELOG} says '{label}: {names(told[label])}'. By {SPEC} it is "
                f"{names(happened)}, {since}."
            )
    if untold := change.reworded - told["Changed"]:
        yield f"{names(untold)} asks something else {since}: add it to 'Changed' in {CHANGELOG}."
    if strangers := told["Changed"] - change.kept:
        yield (
            f"{CHANGELOG} says that {names(strangers)} changed. Only a requirement that was there "
            "before, and still is, can have changed."
        )
    if last is None:
        return
    patch, minor, major = last.following()
    least = major if change.went else minor if change.came or told["Changed"] else patch
    if version < least:
        yield (
            f"{version} is too small a step: {since} there came {names(change.came)}, changed "
            f"{names(told['Changed'])} and went {names(change.went)}. Take {least}."
        )


def change_since(last: Version | None) -> Change:
    """Compare the specification with that of the newest version."""
    now = dict(requirements(read(SPEC)))
    then = dict(requirements(spec_of(last))) if last else {}
    kept = now.keys() & then.keys()
    return Change(
        came=now.keys() - then.keys(),
        kept=kept,
        went=then.keys() - now.keys(),
        reworded={number for number in kept if now[number] != then[number]},
    )


def write(version: Version) -> None:
    """Give the changelog's news their version and date, commit that, and tag the commit."""
    head = git("rev-parse", "HEAD")
    changelog = read(CHANGELOG)
    heading = f"## {version} - {time.strftime('%Y-%m-%d', time.gmtime())}\n"
    text = changelog.replace(UNRELEASED, f"{UNRELEASED}\n{heading}", 1)
    message = f"Version {version}\n\n{unreleased(changelog)}"
    try:
        (ROOT / CHANGELOG).write_text(text, encoding="utf-8")
        git("commit", "--quiet", "--message", f"Release {version}", "--", CHANGELOG)
        git("tag", "--annotate", "--cleanup=whitespace", "--message", message, f"v{version}")
    except BaseException:
        git("reset", "--quiet", "--hard", head)
        raise


def versions() -> list[Version]:
    """Return the versions that are tagged, the newest first."""
    tags = git("tag", "--list", "v*").split()
    found = (Version.parse(tag.removeprefix("v")) for tag in tags)
    return sorted(filter(None, found), reverse=True)


def spec_of(version: Version) -> str:
    """Return the specification of a version that is tagged."""
    return git("show", f"v{version}:{SPEC}")


def requirements(spec: str) -> list[tuple[int, str]]:
    """Return each requirement's number and demand, wherever the demand's lines break."""
    pieces = re.split(r"^### MS-(\d+) ", spec, flags=re.MULTILINE)
    return [
        (int(number), " ".join(bullet(body, "Demand").split()))
        for number, body in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def unreleased(changelog: str) -> str:
    """Return what a changelog says of the next version."""
    _, _, rest = changelog.partition(f"\n{UNRELEASED}")
    return re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0].strip()


def bullet(text: str, label: str) -> str:
    """Return what stands after a label, over all its lines."""
    match = re.search(rf"^\* {label}: (.+(?:\n  .+)*)", text, re.MULTILINE)
    return match[1] if match else ""


def numbers(text: str) -> set[int]:
    """Return the requirements that a text names: MS-1, or all of MS-1 to MS-53."""
    found: set[int] = set()
    for first, last in re.findall(r"MS-(\d+)(?:\s+to\s+MS-(\d+))?", text):
        found.update(range(int(first), int(last or first) + 1))
    return found


def names(found: Iterable[int]) -> str:
    """Return the names of some requirements, three and more in a row in short."""
    runs: list[list[int]] = []
    for number in sorted(found):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts: list[str] = []
    for run in runs:
        if len(run) > 2:
            parts.append(f"MS-{run[0]} to MS-{run[-1]}")
        else:
            parts += [f"MS-{number}" for number in run]
    return ", ".join(parts) or "none"


def read(file: str) -> str:
    """Return the text of a file of the repository."""
    return (ROOT / file).read_text(encoding="utf-8")


def git(*arguments: str) -> str:
    """Run git here, and return what it prints."""
    command = ["git", *arguments]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return result.stdout.rstrip()


if __name__ == "__main__":
    sys.exit(main())
