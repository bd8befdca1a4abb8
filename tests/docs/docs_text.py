"""README and docs as the checks see them: links, headings, inline code and code blocks."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELLS = ("sh", "bash", "console")
_FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?: \"[^\"]*\")?\)")
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Page:
    path: Path
    text: str

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    def prose(self) -> str:
        """Without code blocks."""
        return _FENCE.sub("", self.text)

    def links(self) -> list[str]:
        """Targets, without those to other sites."""
        found = _LINK.findall(_INLINE.sub("", self.prose()))
        return [target for target in found if not re.match(r"[a-z]+:", target)]

    def anchors(self) -> set[str]:
        """As mkdocs makes them of headings."""
        return {slug(heading) for heading in _HEADING.findall(self.prose())}

    def code(self) -> list[str]:
        """Inline code, and the lines of all code blocks; continued lines are joined."""
        lines = [line for match in _FENCE.finditer(self.text) for line in _lines(match["body"])]
        return self._inline() + lines

    def shell(self) -> list[str]:
        """Inline code, and the lines of code blocks in a shell, by their language or indented."""
        blocks = [match["body"] for match in _FENCE.finditer(self.text) if match["language"] in SHELLS]
        lines = [line for block in blocks for line in _lines(block)]
        return (
            self._inline()
            + lines
            + re.findall(r"^ {4}((?:python|kvwatt|sudo) .*)$", self.prose(), re.MULTILINE)
        )

    def _inline(self) -> list[str]:
        return [one.replace("\n", " ") for one in _INLINE.findall(self.prose())]


def _lines(block: str) -> list[str]:
    return block.replace("\\\n", " ").split("\n")


def slug(heading: str) -> str:
    """Python-Markdown's: lower case, words and dashes only."""
    text = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"[-\s]+", "-", text)


@cache
def pages() -> tuple[Page, ...]:
    places = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return tuple(Page(place, place.read_text(encoding="utf-8")) for place in places)


def words(line: str) -> list[str]:
    """A command line as a shell would split it, up to the first operator; what cannot be split is none."""
    try:
        found = shlex.split(line, comments=True)
    except ValueError:
        return []
    ends = [i for i, word in enumerate(found) if word in ("|", "&&", "||", ";", "&", ">", ">>", "#")]
    return found[: ends[0]] if ends else found


def commands(line: str) -> list[list[str]]:
    """Every command of a line, split at operators."""
    return [words(part) for part in re.split(r"&&|\|\||;|\|| & ", line) if part.strip()]
