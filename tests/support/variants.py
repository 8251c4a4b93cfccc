"""Every variant that the prompts can produce, derived from the tables in copier.yml alone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]

CONTRACTS = ("oip", "oip-grpc", "sagemaker", "model-engine", "openai")
# The files that the stock models are sent.
EXAMPLES = {"image": "example.png", "audio": "example.wav", "video": "example.mp4"}
EXAMPLES |= {"json": "", "file": "example.txt"}
FEATURES = (
    "observability",
    "gpu",
    "batching",
    "streaming",
    "isolation",
    "replicas",
    "openapi-export",
    "batch-jobs",
)

# The answers that are neither an axis nor free text are cycled over the variants, so that every
# pair of their values occurs somewhere, and each of them with each value of each axis.
CYCLED: dict[str, list[Any]] = {
    "contracts": [CONTRACTS, (), *((contract,) for contract in CONTRACTS)],
    "system_packages": ["", "libgl1 ffmpeg"],
    "startup_minutes": [10, 45],
    "deploy": [
        ("kubernetes",),
        (),
        ("kubernetes", "autoscaling"),
        ("kserve",),
        ("kubernetes", "kserve-knative"),
    ],
    "auth": ["none", "api-key", "jwt"],
}


@cache
def questionnaire() -> dict[str, Any]:
    """Return copier.yml."""
    text = (ROOT / "copier.yml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


@cache
def table(name: str) -> dict[str, Any]:
    """Return one of copier.yml's tables of what goes with what."""
    rows: dict[str, Any] = yaml.safe_load(questionnaire()[name]["default"])
    return rows


def questions() -> dict[str, dict[str, Any]]:
    """Return the questions that a user can answer, in their order."""
    return {
        name: question
        for name, question in questionnaire().items()
        if not name.startswith("_") and question.get("when") is not False
    }


def example_of(input_kind: str) -> str:
    """Return the file of a stock model's EXAMPLE; where it computes a linear layer, that is."""
    return EXAMPLES[table("input_kinds")[input_kind]["media"]]


def choices(question: str) -> list[str]:
    """Return the values that a question offers, valid together or not."""
    return [
        choice["value"] if isinstance(choice, dict) else choice
        for choice in questionnaire()[question]["choices"].values()
    ]


@dataclass(frozen=True)
class Variant:
    """One valid combination of answers."""

    preset: str
    model_type: str
    input_kind: str
    accelerator: str
    others: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Return what the variant is called in reports."""
        chosen = [self.preset] if self.preset != "none" else [self.model_type, self.input_kind]
        return "-".join([*chosen, self.accelerator])

    @property
    def features(self) -> set[str]:
        """Return the features that it has."""
        return {name for name in FEATURES if dict(self.others)[name]}

    @property
    def answers(self) -> dict[str, Any]:
        """Return what to give to copier: only what does not follow from the preset."""
        axes = {"preset": self.preset, "accelerator": self.accelerator}
        if self.preset == "none":
            axes |= {"model_type": self.model_type, "input_kind": self.input_kind}
        others = {
            name: list(x) if isinstance(x, tuple) else x
            for name, x in self.others
            if name not in FEATURES
        }
        features = [name for name in FEATURES if name in self.features]
        return axes | others | {"features": features}

    @property
    def stack(self) -> str:
        """Return the environment that the variant's code runs in."""
        return self.preset if self.preset != "none" else self.model_type

    @property
    def is_full_depth(self) -> bool:
        """Tell whether its whole test suite is run: once for each model type and input kind.

        The accelerators share the code path that runs on a machine without one. The accelerator
        moves on from combination to combination, so that each is run in depth somewhere.
        """
        return self.accelerator == _deep_accelerator(self.preset, self.model_type, self.input_kind)


@cache
def _deep_accelerator(preset: str, model_type: str, input_kind: str) -> str:
    cells = [
        *((("none", framework, kind)) for framework, kind in _pairs()),
        *((name, row["model_type"], row["input_kind"]) for name, row in table("presets").items()),
    ]
    accelerators = table("model_types")[model_type]["accelerators"]
    place = cells.index((preset, model_type, input_kind))
    return str(accelerators[place % len(accelerators)])


def _pairs() -> Iterator[tuple[str, str]]:
    for framework, row in table("model_types").items():
        for kind in row["input_kinds"]:
            yield framework, kind


@cache
def variants() -> tuple[Variant, ...]:
    """Return every valid model type, input kind and accelerator, and every preset on each."""
    cells = [
        Variant("none", framework, kind, accelerator)
        for framework, kind in _pairs()
        for accelerator in table("model_types")[framework]["accelerators"]
    ]
    cells += [
        Variant(name, row["model_type"], row["input_kind"], accelerator)
        for name, row in table("presets").items()
        for accelerator in table("model_types")[row["model_type"]]["accelerators"]
    ]
    return tuple(_with_each_contract([*_with_others(cells)]))


def _with_each_contract(cells: list[Variant]) -> list[Variant]:
    """Give a kind of input that lacks a contract in its whole suites all of them in its last."""
    for kind in choices("input_kind"):
        places = [
            place
            for place, cell in enumerate(cells)
            if cell.is_full_depth and cell.input_kind == kind
        ]
        found = {name for place in places for name in dict(cells[place].others)["contracts"]}
        if not found >= {*CONTRACTS}:
            cell = cells[places[-1]]
            others = dict(cell.others) | {"contracts": tuple(CONTRACTS)}
            cells[places[-1]] = replace(cell, others=tuple(others.items()))
    return cells


def _with_others(cells: list[Variant]) -> Iterator[Variant]:
    """Give each cell the values of the other questions that make the most pairs not yet seen.

    Those whose whole suite is run come first, so that as many pairs as can be are among them; and
    before others those of a model type with few of them.
    """
    seen: set[frozenset[tuple[str, Any]]] = set()
    kinds = {name: len(row["input_kinds"]) for name, row in table("model_types").items()}
    for cell in sorted(cells, key=lambda cell: (not cell.is_full_depth, kinds[cell.model_type])):
        axes = {
            "model_type": cell.model_type,
            "input_kind": cell.input_kind,
            "accelerator": cell.accelerator,
            "preset": cell.preset,
        }
        others: dict[str, Any] = {}
        for question, values in _other_values(cell).items():
            fixed = axes | others

            def new_pairs(
                value: Any, question: str = question, fixed: dict[str, Any] = fixed
            ) -> int:
                pairs = (frozenset({(question, value), other}) for other in fixed.items())
                return sum(pair not in seen for pair in pairs)

            # Several processes or pods need another queue.
            are_several = others.get("replicas") or {*others.get("deploy", ())} - {"kubernetes"}
            refused = "local" if are_several else None
            others[question] = max((each for each in values if each != refused), key=new_pairs)
            pairs = combinations((axes | others).items(), 2)
            seen.update(frozenset(pair) for pair in pairs)
        yield Variant(
            cell.preset, cell.model_type, cell.input_kind, cell.accelerator, tuple(others.items())
        )


def _other_values(cell: Variant) -> dict[str, list[Any]]:
    row = table("presets")[cell.preset] if cell.preset != "none" else None
    pythons = (row or table("model_types")[cell.model_type])["pythons"]
    # Each feature is there or not, as if it were a question of its own. Where no pair is new, the
    # cells whose whole suite is run have few, as a service has; the others, which are quicker, have
    # as many as can be, but for the process of the model, which doubles the time of a start.
    few = {*FEATURES[1:]} if cell.is_full_depth else {"isolation"}
    features = {name: [False, True] if name in few else [True, False] for name in FEATURES}
    last = {"python_version": pythons, "predictions": choices("predictions")}
    return CYCLED | features | last
