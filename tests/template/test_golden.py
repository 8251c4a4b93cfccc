"""The golden renders under tests/golden are what the template renders now."""

from collections.abc import Mapping

import pytest

from tests.support.updating import ANSWERS, contents
from tests.support.variants import variants
from tools.golden import GOLDEN, RENDERS, Files, reduced, rendered, whole

MEND = "run `make golden` and look at the diff"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Files]:
    """Return the files of the same renders, fresh."""
    return rendered(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", RENDERS)
def test_golden_render(fresh: Mapping[str, Files], name: str) -> None:
    """A change to users' files is seen and committed with the change that makes it."""
    golden = whole(name)
    assert fresh[name].keys() ^ golden.keys() == set(), MEND
    different = [file for file in golden if fresh[name][file] != golden[file]]
    assert different == [], MEND


def test_nothing_is_stored_twice(fresh: Mapping[str, Files]) -> None:
    """What a render shares with the default one is stored there alone; nothing old is left."""
    assert contents(GOLDEN).keys() ^ reduced(fresh).keys() == set(), MEND


@pytest.mark.parametrize("axis", ["preset", "model_type", "input_kind", "accelerator"])
def test_each_choice_has_a_golden_render(axis: str) -> None:
    """Every choice of every axis stands in at least one of them."""
    stored = {
        line.partition(": ")[2]
        for name in RENDERS
        for line in whole(name)[ANSWERS].decode().splitlines()
        if line.startswith(f"{axis}: ")
    }
    assert stored == {getattr(variant, axis) for variant in variants()}
