"""Every vLLM release whose metric names were read, 0.8 to 0.33: what kvwatt finds on its page and what not.

The pages are real values under each release's own names (names_by_version.txt). A release whose page lacks
a series that control needs must be refused by that name; what a release merely does not tell must be known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import pytest
from vllm_pages import OLD_NAMES, PAGES, read_page, renamed, without

from kvwattd.telemetry import layouts
from kvwattd.telemetry.layouts import Layout
from kvwattd.telemetry.vllm_metrics import MetricsError, parse, self_test


@dataclass(frozen=True)
class Told:
    """Which layout a release has, and what it does not tell."""

    layout: str
    tbt_per_request: bool = True  # else the gaps between single tokens stand in
    cached_tokens: bool = True  # else no prompt token counts as spared: more work is expected, never less
    waiting_reason: bool = True  # else only a full KV cache says that requests wait for room
    sleep_state: bool = True  # else taken as awake


EXPECTED = {
    "0.8.5": Told("v0.8", False, False, False, False),
    "0.10.2": Told("v0.10", False, True, False, False),
    "0.12.0": Told("v0.12", True, True, False),
    "0.16.0": Told("v0.16", True, True, False),
    "0.20.2": Told("v0.20"),
    "0.25.0": Told("v0.20"),
    "0.31.0": Told("v0.20"),
    "0.32.0": Told("v0.20"),
    "0.33.0": Told("v0.20"),
}
VERSIONS = sorted(EXPECTED, key=lambda version: [int(part) for part in version.split(".")])


@cache
def names_by_version() -> dict[str, frozenset[str]]:
    """Families by version, without the `vllm:` prefix and without a counter's `_total`."""
    path = PAGES / "names_by_version.txt"
    if not path.is_file():
        pytest.skip(f"no table of vLLM's metric names at {path}")
    head, *rows = (line.split() for line in path.read_text().splitlines() if line.strip())
    versions = head[1:]
    return {
        version: frozenset(family(row[0].removeprefix("vllm:")) for row in rows if row[1 + column] == "x")
        for column, version in enumerate(versions)
    }


def family(series: str) -> str:
    return "iteration_tokens_total" if series == "iteration_tokens_total" else series.removesuffix("_total")


def page_of(version: str) -> bytes:
    """The busy page with exactly the families that this release has, under its names."""
    has = names_by_version()[version]
    page = read_page()
    if "gpu_cache_usage_perc" in has and "kv_cache_usage_perc" not in has:
        for name, new in OLD_NAMES["v0.8"].items():
            page = renamed(page, name, new) if new is not None else without(page, name)
    return b"".join(line for line in page.splitlines(keepends=True) if stays(line, has))


def stays(line: bytes, has: frozenset[str]) -> bool:
    match = re.match(rb"vllm:([a-z0-9_]+?)(?:_bucket|_sum|_count|_created)?(?:\{| )", line)
    return match is None or family(match[1].decode()) in has


def layout_of(version: str) -> Layout:
    return next(layout for layout in layouts.LAYOUTS if layout.name == EXPECTED[version].layout)


def test_the_table_is_the_one_that_was_judged() -> None:
    """Names of a release that is not judged here would be met for the first time in service."""
    assert sorted(names_by_version()) == sorted(EXPECTED)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_release_is_read_and_its_gaps_are_known(version: str) -> None:
    """Every needed series is found; what a release does not tell is what the layout says it does not."""
    page, told = page_of(version), EXPECTED[version]
    report = self_test(page)
    assert (report.layout, report.missing) == (told.layout, ())
    layout = layout_of(version)
    assert (layout.tbt is not None) == told.tbt_per_request
    assert (layout.cached is not None) == told.cached_tokens
    assert (layout.waiting_by_reason is not None) == told.waiting_reason
    assert ("vllm:engine_sleep_state" not in report.absent_optional) == told.sleep_state
    assert {family(name) for name in layout.required} <= names_by_version()[version]


@pytest.mark.parametrize("version", VERSIONS)
def test_each_release_gives_the_numbers_that_stand_on_its_page(version: str) -> None:
    """The same load gives the same snapshot under every release's names, but for what it does not tell."""
    snapshot, newest, told = parse(page_of(version), 1.0), parse(read_page(), 1.0), EXPECTED[version]
    for field in newest.__slots__:
        if field in ("flops_total", "bytes_total"):  # nothing is decided by them
            continue
        expected = getattr(newest, field)
        if field == "tbt_s" and not told.tbt_per_request:
            expected = newest.itl_s
        if field == "prompt_tokens_cached_total" and not told.cached_tokens:
            expected = 0.0
        if field == "waiting_for_capacity" and not told.waiting_reason:
            expected = 0
        assert getattr(snapshot, field) == expected, field


@pytest.mark.parametrize("version", VERSIONS)
def test_each_release_without_one_needed_series_is_refused_by_name(version: str) -> None:
    """Never read as zero: refused with what the closest layout lacks, or read in one that never had it."""
    page, refused = page_of(version), 0
    for name in layout_of(version).required:
        less = without(page, name)
        report = self_test(less)
        if report.accepted:
            older = next(layout for layout in layouts.LAYOUTS if layout.name == report.layout)
            assert name not in older.required
            continue
        with pytest.raises(MetricsError) as caught:
            parse(less, 1.0)
        assert caught.value.kind == "missing_series"
        # A page between two layouts may lack as little of the next: then that one is named.
        assert caught.value.names == report.missing and report.missing
        assert name not in layouts.COMMON or "vllm:" + name in report.missing
        refused += 1
    assert refused >= len(layouts.COMMON)


def test_every_series_of_control_that_came_went_or_was_renamed_has_a_layout() -> None:
    """Between two releases that are read in one layout, nothing that the layout needs came or went."""
    table = names_by_version()
    needed = {family(name) for layout in layouts.LAYOUTS for name in layout.required}
    changes = 0
    for before, after in pairwise(VERSIONS):
        moved = (table[before] ^ table[after]) & needed
        if EXPECTED[before].layout == EXPECTED[after].layout:
            assert not moved & {family(name) for name in layout_of(after).required}
        changes += len(moved)
    assert changes > 5


def test_a_release_that_renames_a_needed_series_is_refused() -> None:
    """The next rename is met with a refusal that names what is gone, whatever else the page holds."""
    for name in layouts.COMMON:
        page = renamed(page_of("0.33.0"), name, name.replace("_total", "") + "_v2")
        report = self_test(page)
        assert not report.accepted and "vllm:" + name in report.missing
