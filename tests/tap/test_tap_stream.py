"""The tap is relied on while it agrees with the metrics page, and its numbers are exact."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from blank_page import BLANK
from hypothesis import given, settings
from hypothesis import strategies as st
from tap_records import MODEL, ended, record

from kvwatt.lengths import LengthModel
from kvwatt.state import EngineSnapshot, Histogram
from kvwattd.tap_stream import TapStream, exact_histogram, length_histograms
from kvwattd.vllm_plugin.wire import Finished

STALE_S = 1.5


def page(at_s: float, generated: float, running: int = 3) -> EngineSnapshot:
    return replace(
        BLANK,
        observed_s=at_s,
        model_name=MODEL,
        running=running,
        num_blocks=1001,
        kv_usage=0.2,
        generation_tokens_total=generated,
    )


class Played:
    """Steps of 20 ms for three requests, and a page every half second."""

    def __init__(
        self, seconds: float = 4.0, told: float = 1.0, counted: float = 1.0, **fields: object
    ) -> None:
        self.tap = TapStream(STALE_S)
        self.fields = fields
        self.told, self.counted = told, counted
        self.steps = 0
        self.sent = 0
        self.total = 0
        self.tap.on_page(page(0.0, 0.0))
        self.run(seconds)

    def run(self, seconds: float, silent: bool = False) -> None:
        for _ in range(round(seconds / 0.02)):
            self.steps += 1
            now_s = self.steps * 0.02
            if not silent and self.steps % round(1 / self.told) == 0:
                self.sent += 1
                self.total += 3
                self.tap.on_record(self.make(now_s), now_s)
            if self.steps % 25 == 0:
                self.tap.on_page(page(now_s + 0.001, 3 * self.steps * self.counted))

    def make(self, now_s: float, **changed: object) -> object:
        known = {"sequence": self.sent, "sent_s": now_s, "generation_tokens_total": self.total}
        return record(**(known | self.fields | changed))


def test_a_tap_that_agrees_with_the_page_is_relied_on() -> None:
    """As many tokens told as counted: trusted, and nothing lost."""
    played = Played()
    assert played.tap.fault() is None
    assert played.tap.lost == 0
    assert played.tap.records == 200


def test_nothing_is_relied_on_before_it_was_compared() -> None:
    """The first pages only set the beginning."""
    assert TapStream(STALE_S).fault() == "no record has come"
    fault = Played(seconds=0.4).tap.fault()
    assert fault is not None
    assert "compared" in fault


@pytest.mark.parametrize(("told", "counted"), [(0.5, 1.0), (1.0, 0.5)])
def test_a_tap_that_contradicts_the_page_is_not_relied_on(told: float, counted: float) -> None:
    """A part of the engine, or somebody else's: the page is right."""
    fault = Played(told=told, counted=counted).tap.fault()
    assert fault is not None
    assert "disagrees" in fault


@pytest.mark.parametrize("made", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("told", [0.5, 1.0, 2.0])
def test_slow_scrapes_are_no_disagreement(told: float, made: float) -> None:
    """A page made and read up to two seconds after it was asked for; a tap that is wrong is found even so."""
    tap, total, doubts = TapStream(STALE_S), 0, set()
    tap.on_page(page(0.0, 0.0))
    for step in range(1, 1001):
        now_s, sent = step * 0.02, round(told * 3 * step)
        tap.on_record(
            record(sequence=step, sent_s=now_s, generation_tokens=sent - total, generation_tokens_total=sent),
            now_s,
        )
        total = sent
        late_s = (0.004, 2.0, 0.3, 0.8)[(step // 125) % 4]
        if step % 125 == 0:
            tap.on_page(page(now_s - late_s, 3 * round((now_s - late_s * (1.0 - made)) / 0.02)))
            doubts.add(str(tap.doubt()).split()[0])
    assert ("disagrees" in doubts) is (told != 1.0)
    assert (tap.fault() is None) is (told == 1.0)


def test_a_tap_that_falls_silent_is_given_up_and_taken_up_again() -> None:
    """While requests run and no record comes the page is used; records that agree bring the tap back."""
    played = Played()
    played.run(3.0, silent=True)
    assert played.tap.fault() is not None
    assert played.tap.live() is None
    played.run(12.0)
    assert played.tap.fault() is None


def test_distrust_outlasts_a_pause() -> None:
    """What disagreed is not forgotten while nothing is served: only agreement wins trust."""
    played = Played(told=0.5)
    for beat in range(1, 60):
        played.tap.on_page(page(4.0 + beat * 0.5, 3 * played.steps, running=0))
    assert played.tap.fault() is not None


def test_an_idle_engine_makes_no_steps_and_no_doubt() -> None:
    """Without running requests no record is due."""
    played = Played()
    for beat in range(1, 40):
        played.tap.on_page(page(4.0 + beat * 0.5, 3 * played.steps, running=0))
    assert played.tap.fault() is None


def test_lost_records_are_counted_but_their_tokens_are_not_missed() -> None:
    """Totals ride with every record, so a gap costs detail, not agreement."""
    played = Played()
    played.sent += 10
    played.total += 30
    played.steps += 10
    played.run(2.0)
    assert played.tap.lost == 10
    assert played.tap.fault() is None


def test_of_several_api_servers_only_single_requests_are_taken() -> None:
    """Each of them sees a part of every step, but together they tell every request and every token."""
    tap, total, told = TapStream(STALE_S), Counter[int](), 0
    tap.on_page(page(0.0, 0.0))
    for step in range(1, 201):
        now_s = step * 0.02
        for sender, tokens in ((7, 2), (8, 1)):
            total[sender] += tokens
            told += tokens
            part = {"sender": sender, "sequence": step, "servers": 2, "sent_s": now_s, "decodes": tokens}
            counted = {"generation_tokens": tokens, "generation_tokens_total": total[sender]}
            tap.on_record(record(**part, **counted, finished=[ended(10, 5)]), now_s)
        if step % 25 == 0:
            tap.on_page(page(now_s + 0.001, told))
    assert tap.doubt() is None
    assert "API servers" in str(tap.fault())
    assert tap.live() is None
    assert len(tap.take_finished()) == 400


def test_one_of_several_api_servers_alone_is_not_relied_on() -> None:
    """Where the tap is missing in one of them, the page has tokens that nobody told."""
    played = Played(servers=2, told=1.0, counted=2.0)
    assert "disagrees" in str(played.tap.doubt())


def test_the_live_state_is_the_newest_step_s() -> None:
    """It counts until a page comes that is newer by more than a step."""
    played = Played()
    played.tap.on_record(played.make(4.02, sequence=201, running=9, waiting=4, kv_usage=0.5), 4.02)
    for page_s in (4.001, 4.03):
        played.tap.on_page(page(page_s, 3.0 * played.steps))
        live = played.tap.live()
        assert live is not None
        assert (live.observed_s, live.running, live.waiting, live.kv_usage) == (4.02, 9, 4, 0.5)
    played.tap.on_page(page(4.07, 3.0 * played.steps))
    assert played.tap.fault() is None
    assert played.tap.live() is None


def test_a_sender_s_clock_from_the_future_or_the_past_is_not_believed() -> None:
    """A record is never newer than its arrival, and a strange clock counts for nothing."""
    played = Played()
    for sent_s in (1e9, -1e9 + 4.1, 0.0):
        played.tap.on_record(played.make(sent_s, sequence=201), 4.1)
        assert played.tap.last_s == pytest.approx(4.1, abs=0.1001)


def test_a_restart_begins_anew() -> None:
    """After the engine's restart nothing is relied on until it is compared again."""
    played = Played()
    played.tap.restart()
    assert played.tap.fault() is not None
    assert played.tap.take_steps() == []
    assert played.tap.take_finished() == []


def test_steps_and_finished_requests_are_taken_once() -> None:
    """What was taken is gone; a step without decodes has no time to learn from."""
    played = Played(finished=[ended(10, 5)])
    assert len(played.tap.take_finished()) == 200
    steps = played.tap.take_steps()
    assert len(steps) == 200
    assert {(s.step_s, s.decodes, s.kv_usage) for s in steps} == {(0.02, 3, 0.25)}
    assert played.tap.take_steps() == []
    played.tap.on_record(played.make(4.1, step_s=None, decodes=0), 4.1)
    assert played.tap.take_steps() == []


@settings(deadline=None)
@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=60))
def test_exact_histograms_hold_every_length_where_it_lies(lengths: list[int]) -> None:
    """Counts, sum and order are those of the lengths; a length model accepts it and has their mean."""
    histogram = exact_histogram(lengths)
    assert histogram.count == len(lengths)
    assert histogram.sum == sum(lengths)
    for bound, below in zip(histogram.bounds, histogram.cumulative, strict=True):
        assert below == sum(length <= bound for length in lengths)
    model = LengthModel()
    model.update(histogram)
    assert model.weight_requests == pytest.approx(len(lengths))


def test_lengths_learned_one_by_one_are_sharper_than_buckets() -> None:
    """Answers of 120 or 180 tokens share vLLM's bucket of 100 to 200; the tap tells them apart."""
    finished = [Finished(0, 50, 120)] * 50 + [Finished(0, 50, 180)] * 50
    exact, coarse = LengthModel(), LengthModel()
    exact.update(length_histograms(finished)[1])
    coarse.update(Histogram((100.0, 200.0, float("inf")), (0.0, 100.0, 100.0), 15_000.0, 100.0))
    truth = np.array([1.0, 0.5, 0.5, 0.0])
    at = np.array([108.0, 130.0, 162.0, 193.0])
    assert float(np.abs(exact.survival(at) - truth).max()) < 0.1
    assert float(np.abs(coarse.survival(at) - truth).max()) > 0.1


def test_an_interval_without_finished_requests_teaches_nothing() -> None:
    """Empty in, empty out."""
    prompts, outputs = length_histograms([])
    assert (prompts.count, outputs.count) == (0.0, 0.0)
    model = LengthModel()
    model.update(outputs)
    assert model.weight_requests == 0


def test_pages_are_compared_in_their_own_time() -> None:
    """A page that is not newer than the last one compares nothing."""
    played = Played()
    newest = page(played.steps * 0.02 + 0.001, 3.0 * played.steps)
    played.tap.on_page(replace(newest, generation_tokens_total=1e9))
    assert played.tap.fault() is None
