"""Configuration errors in the operator's words: the key, the value and what is accepted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_CREDENTIALS = re.compile(r"//[^/\s@]*@")


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing that is wrong. `key` as written in the file, for example `instance[0].url`."""

    key: str
    value: object
    accepted: str

    @property
    def shown(self) -> str:
        """The value without credentials."""
        return _CREDENTIALS.sub("//***@", repr(self.value))

    def __str__(self) -> str:
        return f"{self.key}: got {self.shown}, accepted: {self.accepted}"


class ConfigError(Exception):
    """The configuration is refused; `problems` holds every reason found."""

    def __init__(self, problems: Iterable[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` for a likely slip, else the list of what is known."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f": one of {', '.join(names)}"


def problems_from(error: ValidationError, root: type[BaseModel]) -> list[ConfigProblem]:
    """Translate pydantic's errors, leaving out those of a container that only follow from its items'."""
    items = error.errors()
    loci = [item["loc"] for item in items]
    return [
        _problem(item["type"], item["loc"], item["input"], item["msg"], root)
        for item in items
        if not any(len(loc) > len(item["loc"]) and loc[: len(item["loc"])] == item["loc"] for loc in loci)
    ]


def _problem(
    kind: str, loc: Sequence[int | str], value: object, message: str, root: type[BaseModel]
) -> ConfigProblem:
    key = dotted(loc)
    if kind == "extra_forbidden":
        hint = nearest_hint(str(loc[-1]), model_at(root, loc[:-1]).model_fields)
        return ConfigProblem(key, value, f"a known key{hint}")
    if kind == "missing":
        return ConfigProblem(key, "nothing", "a value: this key is required")
    return ConfigProblem(key, value, accepted_from(message))


def accepted_from(message: str) -> str:
    """What is accepted, out of pydantic's message: 'Input should be greater than 0' -> 'greater than 0'."""
    return re.sub(r"^(Value error, )?((Input|String|Tuple|List|Value) should (be )?)?", "", message)


def dotted(loc: Sequence[int | str]) -> str:
    """('instance', 0, 'slo', 'tbt') -> 'instance[0].slo.tbt'."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def model_at(root: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel]:
    """The pydantic model that lies at `loc` below `root`."""
    model = root
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = nested_model(model.model_fields[part].annotation) or model
    return model


def nested_model(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 (annotations are of any type)
    """The first pydantic model inside an annotation, such as `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (nested_model(part) for part in get_args(annotation))
    return next((model for model in found if model), None)
