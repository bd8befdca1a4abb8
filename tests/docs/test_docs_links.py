"""README and docs: every link, anchor, path of the repository and command line in them leads somewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest
from docs_text import ROOT, Page, commands, pages

from kvwattd.cli import COMMANDS
from kvwattd.docs.cli import click_command
from kvwattd.guard.config import parser

FOLDERS = ("tests", "bench", "docs", "deploy", "systemd", "daemon", "predictor", "simulator")
_PATH = re.compile(rf"(?:^|[\s(\"'=])((?:{'|'.join(FOLDERS)})/[\w./*@-]*[\w*])")
# What was tried then stands there as it was.
HISTORY = ("docs/decisions.md",)

each = pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)


@each
def test_links(page: Page) -> None:
    """Files and headings exist; pages of the site link to nothing outside of docs/."""
    wrong = []
    for target in page.links():
        place, _, anchor = target.partition("#")
        path = (page.path.parent / place).resolve() if place else page.path
        if not path.exists() or (page.name != "README.md" and not path.is_relative_to(ROOT / "docs")):
            wrong.append(target)
        elif anchor and path.suffix == ".md":
            (there,) = [one for one in pages() if one.path == path]
            if anchor not in there.anchors():
                wrong.append(target)
    assert not wrong


@each
def test_paths(page: Page) -> None:
    """A path of the repository that is named in code exists; a name of a page without a folder, too."""
    if page.name in HISTORY:
        return
    wrong = []
    for code in page.code():
        wrong += [found for found in _PATH.findall(code) if not list(ROOT.glob(found))]
        if re.fullmatch(r"[\w-]+\.md", code) and code != "README.md":
            wrong += [] if (ROOT / "docs" / code).exists() else [code]
    assert not wrong


@each
def test_commands(page: Page) -> None:
    """Every `kvwatt ...` has a command and options that there are; every bench an option that it takes."""
    if page.name in HISTORY:
        return
    wrong = [problem for line in page.shell() for one in commands(line) for problem in _problems(one)]
    assert not wrong


def test_the_safety_case_has_evidence() -> None:
    """Each invariant of the design has tests, by name where one is named, and a bench; none is made up."""
    (design,) = [page.text for page in pages() if page.name == "docs/design.md"]
    (case,) = [page.text for page in pages() if page.name == "docs/safety.md"]
    wanted = re.findall(r"^(\d+)\. ", design[design.index("## Invariants") :], re.MULTILINE)
    rows = [line.split(" | ") for line in case.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [row[0].strip("| ") for row in rows] == wanted and len(wanted) >= 10
    for *_, tests, benches in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", tests)
        assert named and re.search(r"`bench/\w+\.py", benches)
        for path, function in named:
            assert not function or f"def {function}(" in (ROOT / path).read_text(), f"{path}::{function}"


def _problems(line: list[str]) -> list[str]:
    for start, word in enumerate(line):
        name = word.rpartition("/")[2]
        if name in ("kvwatt", "kvwatt-guard") and _is_program(line, start):
            arguments = line[start + 1 :]
            return _guard(arguments) if name == "kvwatt-guard" else _kvwatt(arguments)
        if re.fullmatch(r"bench/\w+\.py", word):
            return _bench(word, line[start + 1 :])
    return []


def _is_program(line: list[str], start: int) -> bool:
    """First word, or after sudo, docker compose ..., kubectl exec ... --, or assignments."""
    before = line[:start]
    wrapped = {"sudo", "docker", "kubectl", "nice", "env"} & set(before)
    return all("=" in word for word in before) or bool(wrapped and line[start + 1 : start + 2])


def _kvwatt(arguments: list[str]) -> list[str]:
    if not arguments or arguments[0].startswith(("-", "<", "[", ".")):
        return []
    name = arguments[0]
    if name not in COMMANDS:
        return [f"kvwatt {name}"] if re.fullmatch(r"[a-z-]+", name) else []
    if name == "guard":
        return _guard(arguments[1:])
    return _options(f"kvwatt {name}", click_command(name), arguments[1:])


def _options(name: str, command: Any, arguments: list[str]) -> list[str]:
    under = getattr(command, "commands", {})
    if under and arguments and not arguments[0].startswith("-"):
        if arguments[0] not in under:
            return [f"{name} {arguments[0]}"]
        return _options(f"{name} {arguments[0]}", under[arguments[0]], arguments[1:])
    known = {word for one in command.params for word in (*one.opts, *one.secondary_opts)} | {"--help"}
    return [f"{name} {word}" for word in _flags(arguments) if word not in known]


def _guard(arguments: list[str]) -> list[str]:
    known = {word for action in parser()._actions for word in action.option_strings}
    return [f"kvwatt-guard {word}" for word in _flags(arguments) if word not in known]


def _bench(script: str, arguments: list[str]) -> list[str]:
    source = "".join(path.read_text() for path in (ROOT / "bench").glob("*.py"))
    known = set(re.findall(r'"(--[a-z][\w-]*|-[a-z])"', source))
    known |= {f"--no-{word[2:]}" for word in known}
    return [f"{script} {word}" for word in _flags(arguments) if word not in known]


def _flags(arguments: list[str]) -> list[str]:
    found = [re.sub(r"[\]\[,.]+$", "", word.lstrip("[")).partition("=")[0] for word in arguments]
    return [word for word in found if re.fullmatch(r"--[a-z][\w-]*|-[a-z]", word)]


def test_the_checks_find_something() -> None:
    """They look at what they are meant to, and tell what is wrong."""
    lines = [one for page in pages() for code in page.shell() for one in commands(code)]
    assert sum("kvwatt" in line for line in lines) > 20
    assert _problems(["kvwatt", "profile", "--nonsense"]) == ["kvwatt profile --nonsense"]
    assert _problems(["sudo", "/opt/kvwatt/bin/kvwatt", "nonsense", "now"]) == ["kvwatt nonsense"]
    assert _problems(["python", "bench/energy.py", "--nonsense"]) == ["bench/energy.py --nonsense"]
    assert sum(len(page.links()) for page in pages()) > 40
