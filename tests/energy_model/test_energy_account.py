"""The daemon's own account of energy, fed from a virtual plant as it would be live."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from energy_serving import CARD, CLOCK, POLL_S, SHAPE, Serving, Truth, conversation

from kvwatt.attribution import MICRO, Part
from kvwatt.energy_factors import FACTORS
from kvwatt.energy_table import TableEnergy
from kvwatt.policy import PolicyParams
from kvwatt.state import GpuSample, Slo, SloTarget
from kvwatt.traffic import interval
from kvwatt_sim.engine import Request
from kvwatt_sim.metered import serving
from kvwatt_sim.metered.counter import Noise
from kvwatt_sim.replay.controller import Drive
from kvwatt_sim.replay.kvwatt_controller import KvwattController
from kvwatt_sim.replay.models import compiled_model
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.workload import generate
from kvwattd.energy_account import EnergyAccount
from kvwattd.energy_feed import attribute
from kvwattd.energy_learning.learner import EnergyLearner
from kvwattd.energy_windows import WINDOW_S, EngineFacts, WindowBuilder
from kvwattd.observation import Observation
from kvwattd.views_energy import attribution_view


@pytest.mark.parametrize("tapped", [True, False])
def test_the_parts_add_up_to_the_counter(tapped: bool) -> None:
    """Over any stretch, to the microjoule, with what the last page left to charge."""
    served = Serving(conversation(1.0, 60.0, 5), tapped)
    served.run(150.0)
    book = served.account.book
    assert abs(book.total / MICRO - served.energy_j) < 200.0 * POLL_S
    assert sum(book.parts.values()) == book.total
    assert book.parts[Part.IDLE] / MICRO > 60.0 * 70.0  # it idled for at least a minute
    assert bool(served.account.records) is tapped
    assert (book.untold > 0) is not tapped


def test_every_finished_request_has_its_joules() -> None:
    """Their sum is all energy of work; longer ones took more; none was left open."""
    served = Serving(conversation(1.0, 60.0, 5))
    served.run(150.0)
    account, book = served.account, served.account.book
    assert account.attributed == account.requests == len(served.requests)
    assert book.open == 0
    records = list(account.records)
    assert sum(record.joules for record in records) == pytest.approx(book.finished / MICRO)
    assert book.abandoned + book.untold + book.parts[Part.UNKNOWN] < 0.001 * book.finished
    joules = np.array([record.joules for record in records])
    outputs = np.array([record.output_tokens for record in records])
    assert np.corrcoef(joules, outputs)[0, 1] > 0.5
    assert account.output_tokens == outputs.sum()


def test_a_request_alone_is_charged_what_the_plant_drew_for_it() -> None:
    """All that was drawn while it was inside, within what two pages leave open."""
    served = Serving([Request("r", 20.0, 1000, 400)])
    served.run(20.0)
    before_j = served.energy_j
    while served.finished == 0:
        served.run(served.now_s + 0.001)
    own_j = served.energy_j - before_j
    served.run(60.0)
    (record,) = served.account.records
    assert record.joules == pytest.approx(own_j, rel=0.05)
    assert record.parts_j[Part.WEIGHTS] > record.parts_j[Part.KV]
    assert record.parts_j[Part.PREFILL] > 0.0


def test_what_is_asked_of_late_is_joules_over_tokens() -> None:
    """With idle energy and without; nothing where nothing came."""
    served = Serving(conversation(2.0, 50.0, 6))
    served.run(50.0)
    recent = served.account.recent
    busy, whole, each = recent.output_token_j(False), recent.output_token_j(True), recent.request_j(False)
    assert busy is not None
    assert whole is not None
    assert each is not None
    assert 0.1 < busy <= whole < 10.0 < each
    assert EnergyAccount().recent.output_token_j(True) is None
    assert EnergyAccount().recent.request_j(True) is None


def test_an_engine_that_restarts_takes_its_requests_with_it() -> None:
    """What was charged to them stays counted, as abandoned; what follows is attributed anew."""
    served = Serving(conversation(2.0, 30.0, 6))
    served.run(20.0)
    account, page = served.account, served.page
    assert page is not None
    open_before = account.book.open
    assert open_before > 0
    account.on_page(replace(page, observed_s=30.0), None, {}, 1200.0, Truth(), None)
    assert account.book.open == 0
    assert account.book.abandoned >= open_before


def test_without_a_model_energy_is_unknown_and_still_counted() -> None:
    """Joules per token are of the whole then; nothing is invented about parts."""
    served = Serving(conversation(2.0, 20.0, 6))
    served.run(10.0)
    page, account = served.page, EnergyAccount()
    assert page is not None
    account.on_page(page, None, {"GPU": 100.0}, 1200.0, None, None)
    later = replace(page, observed_s=page.observed_s + 1.0)
    account.on_page(later, interval(page, later), {"GPU": 400.0, "new": 1e9}, 1200.0, None, None)
    assert account.book.parts[Part.UNKNOWN] == account.book.total == 300 * MICRO


def test_windows_have_the_counters_joules_and_the_pages_rates() -> None:
    """Over a stretch their joules add up to the counter's, and their tokens to the page's."""
    requests = generate(2.0, 300.0, 8)
    found = serving.metered(CARD, SHAPE, serving.Serving(requests, (1200, 2100), 300.0), 3, Noise.none())
    assert len(found) >= 28
    assert sum(item.energy_j for item in found) == pytest.approx(sum(item.true_j for item in found), rel=0.01)
    tokens = sum(item.row[0] * item.row[1 + FACTORS.index("output_tokens_per_s")] for item in found)
    plant = VirtualPlant(CARD, SHAPE, requests)
    plant.set_clock(1200, 0.0)
    plant.advance(300.0)
    assert tokens == pytest.approx(plant.generated_tokens, rel=0.1)
    assert all(item.row[0] >= WINDOW_S for item in found)


def test_a_window_without_pages_or_with_a_gap_is_no_window() -> None:
    """What was not seen is not taught."""
    builder, counted = WindowBuilder(EngineFacts(1, 2048)), []
    for second in range(60):
        sample = GpuSample(float(second), "GPU", 1200, 100.0, 100.0 * second, 40.0, 1.0, 0)
        counted.append(builder.on_gpu({"GPU": sample}))
    assert not any(counted)
    assert builder.dropped == 5
    assert builder.on_gpu({"GPU": replace(sample, observed_s=500.0, energy_j=1e6)}) is None
    assert builder.dropped == 5


def test_a_compiled_table_says_what_the_model_says() -> None:
    """At its clocks exactly; between them between."""
    clocks = (1200, 1800, 2400)
    table = TableEnergy(compiled_model(CARD, clocks, SHAPE))
    load_ = (np.array([32.0] * 3), np.array([3e4] * 3), np.array([0.0] * 3))
    at = table.step_time_s(np.array(clocks, dtype=float), *load_)
    assert at == pytest.approx(table.model.step_time_s(*load_)[0])
    between = table.power_w(np.array([1500.0, 100.0, 9999.0]), *load_)
    ends = table.model.power_w(*load_)[0]
    assert ends[0] < between[0] < ends[1]
    assert (between[1], between[2]) == (ends[0], ends[2])


def test_the_daemons_instance_attributes_what_its_gpus_used() -> None:
    """The instance as the loop drives it: pages and readings in, parts that add up to the counter out, and
    the view that REST and /metrics show."""
    plant = VirtualPlant(CARD, SHAPE, generate(1.0, 60.0, 9))
    clocks = (1200, 1800, 2400)
    slo = Slo(SloTarget(3.0), SloTarget(0.2), SloTarget(60.0))
    model = compiled_model(CARD, clocks, SHAPE)
    controller = KvwattController(CARD, SHAPE, model, slo, PolicyParams(reaction_s=0.8))
    outcome = Drive(plant, controller).finish(90.0)
    account = controller.run.account
    assert account.book.total / MICRO == pytest.approx(outcome.energy_j, rel=0.03)
    view = attribution_view(account)
    assert view is not None
    assert sum(view.parts_j.values()) == pytest.approx(account.book.total / MICRO)
    assert view.output_tokens_total == pytest.approx(outcome.tokens, rel=0.05)
    assert 0.1 < (view.output_token_j or 0.0) < (view.output_token_whole_j or 0.0) < 100.0
    assert attribution_view(EnergyAccount()) is None


def test_a_tap_that_is_trusted_names_the_requests() -> None:
    """From the first page on that tap and page agree, requests end with joules of their own."""
    observed = Observation(POLL_S, 3 * POLL_S, 2048)
    account = EnergyAccount()
    model = compiled_model(CARD, (1200, 1800, 2400), SHAPE)

    def feed(served: Serving) -> None:
        assert served.page is not None
        observed.on_page(served.page)
        sample = GpuSample(served.now_s, "GPU", CLOCK, 100.0, served.energy_j, 40.0, 1.0, 0)
        attribute(account, observed, {"GPU": sample}, model)

    served = Serving(conversation(2.0, 60.0, 6))
    served.on_page, served.on_record = feed, observed.tap.on_record
    served.run(120.0)
    assert observed.source == "tap"
    assert account.attributed > 0.8 * len(served.requests)
    assert abs(account.book.total / MICRO - served.energy_j) < 300.0
    view = attribution_view(account)
    assert view is not None
    assert len(view.newest) == 16
    assert view.newest[0].joules == account.records[-1].joules
    assert (view.request_p50_j or 0.0) <= (view.request_p99_j or 0.0)


def test_vllms_estimates_of_its_own_traffic_reach_the_window() -> None:
    """Where the version tells FLOPs and bytes they are factors; where a page lacks them they are unknown."""
    served = Serving(conversation(1.0, 30.0, 6))
    served.run(1.0)
    page, found = served.page, {}
    assert page is not None
    for told in (True, False):
        builder = WindowBuilder(EngineFacts(2, 2048))
        for tick in range(25):
            at_s = 0.5 * tick
            later = replace(
                page, observed_s=at_s, flops_total=1e9 * at_s if told else None, bytes_total=3e6 * at_s
            )
            builder.on_page(later)
            sample = GpuSample(at_s, "GPU", 1200, 100.0, 100.0 * at_s, 40.0, 1.0, 0)
            found[told] = builder.on_gpu({"GPU": sample}) or found.get(told)
    rows = {told: dict(zip(FACTORS, window.row[1:], strict=True)) for told, window in found.items() if window}
    assert rows[True]["flops_per_s"] == pytest.approx(2e9)
    assert rows[True]["bytes_per_s"] == rows[False]["bytes_per_s"] == pytest.approx(6e6)
    assert np.isnan(rows[False]["flops_per_s"])


def test_the_power_cap_of_its_gpus_is_a_factor_of_what_is_learned() -> None:
    """Another cap begins another window, for a mix of both is neither; without one it is unknown."""
    served = Serving(conversation(1.0, 30.0, 6))
    served.run(1.0)
    page, learner = served.page, EnergyLearner()
    assert page is not None
    for tick in range(130):
        at_s = 0.5 * tick
        cap_w = 275.0 if tick < 45 else 180.0 if tick < 85 else None
        learner.on_page(replace(page, observed_s=at_s), 1, 2048, cap_w)
        learner.on_gpu({"GPU": GpuSample(at_s, "GPU", 1200, 100.0, 100.0 * at_s, 40.0, 1.0, 0)})
    rows = [dict(zip(FACTORS, window.row[1:], strict=True)) for window in learner.ring.windows()]
    caps = [None if np.isnan(row["power_cap_w"]) else row["power_cap_w"] for row in rows]
    assert caps == [275.0, 275.0, 180.0, None, None]


def test_a_window_without_pages_is_dropped_and_counted() -> None:
    """The engine was not heard of for a whole window: it teaches nothing, the next one is fine."""
    served = Serving(conversation(1.0, 30.0, 6))
    served.run(1.0)
    page, builder, found = served.page, WindowBuilder(EngineFacts(1, 2048)), []
    assert page is not None
    for tick in range(60):
        at_s = 0.5 * tick
        if tick == 0 or tick >= 22:
            builder.on_page(replace(page, observed_s=at_s))
        sample = GpuSample(at_s, "GPU", 1200, 100.0, 100.0 * at_s, 40.0, 1.0, 0)
        found.append(builder.on_gpu({"GPU": sample}))
    assert builder.dropped == 1
    assert sum(window is not None for window in found) == 1
