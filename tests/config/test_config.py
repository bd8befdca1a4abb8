"""The configuration is refused with a reason or accepted as it stands; it is never repaired."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kvwatt.state import Slo, SloTarget
from kvwattd.config import ConfigError, Mode, load_config, parse_config

BASE: dict[str, Any] = {
    "slo": {"tbt": {"limit_s": 0.1}},
    "instance": [{"name": "chat", "url": "http://127.0.0.1:8000", "gpus": ["0"]}],
}


def with_value(path: str, value: object) -> dict[str, Any]:
    data = copy.deepcopy(BASE)
    *parents, last = path.split(".")
    node: Any = data
    for part in parents:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[last] = value
    return data


def refusal(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(data)
    return str(caught.value)


def test_minimal_configuration_gets_safe_defaults() -> None:
    """Without further keys the daemon only watches, on loopback, and writes need a token."""
    config = parse_config(BASE)
    assert config.daemon.mode is Mode.SHADOW
    assert config.api.host == "127.0.0.1"
    assert config.api.token_file is None
    assert config.slo_for("chat") == Slo(tbt=SloTarget(0.1, 0.99))


def test_instance_target_replaces_the_default_of_the_same_metric_only() -> None:
    """An instance's own TBT promise stands beside the TTFT promise made for all."""
    data = with_value("slo.ttft", {"limit_s": 2.0})
    data["instance"][0]["slo"] = {"tbt": {"limit_s": 0.05, "quantile": 0.95}}
    assert parse_config(data).slo_for("chat") == Slo(ttft=SloTarget(2.0), tbt=SloTarget(0.05, 0.95))


def test_configuration_is_frozen() -> None:
    """Nothing changes a configuration after it was validated."""
    config = parse_config(BASE)
    with pytest.raises(ValidationError):
        config.daemon.tick_s = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "soon", 1e9])
@pytest.mark.parametrize("key", ["daemon.tick_s", "guard.timeout_s", "slo.tbt.limit_s", "instance.0.poll_s"])
def test_times_must_be_positive_finite_numbers(key: str, value: object) -> None:
    """Zero, negative, NaN, infinite, boolean, textual and absurd times are refused, by key and value."""
    message = refusal(with_value(key, value))
    assert key.replace(".0.", "[0].") in message
    assert repr(value) in message
    assert "accepted:" in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("daemon.mode", "on", "'off', 'shadow' or 'active'"),
        ("daemon.log_format", "xml", "'text' or 'json'"),
        ("api.port", 65_536, "less than or equal to 65535"),
        ("slo.tbt.quantile", 1, "less than 1"),
        ("policy.margin", 1.0, "less than 1"),
        ("policy.floor_mhz", 0, "greater than 0"),
        ("instance.0.name", "a/b", "letters, digits"),
        ("instance.0.gpus", [], "at least 1 item"),
        ("instance.0.gpus", ["MIG-1"], "MIG slices share one clock"),
        ("instance.0.gpus", ["gpu0"], "GPU UUID"),
        ("instance.0.url", "127.0.0.1:8000", "http://HOST:PORT"),
        ("instance.0.url", "http://127.0.0.1:8000/metrics", "without path"),
        ("instance.0.url", "http://127.0.0.1:99999", "http://HOST:PORT"),
        ("instance", [], "at least 1 item"),
    ],
)
def test_refusal_says_what_is_accepted(key: str, value: object, expected: str) -> None:
    """Each error names the key and tells the accepted values."""
    message = refusal(with_value(key, value))
    assert key.split(".")[-1] in message
    assert expected in message


def test_credentials_in_a_url_are_refused_and_not_shown() -> None:
    """A password in a URL is refused and does not reach the log by way of the error."""
    message = refusal(with_value("instance.0.url", "http://me:hunter2@127.0.0.1:8000"))
    assert "instance[0].url" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("deamon", "daemon"),
        ("daemon.tick", "tick_s"),
        ("slo.tbt.limits_s", "limit_s"),
        ("instance.0.pol_s", "poll_s"),
        ("instance.0.slo.tpt", "tbt"),
    ],
)
def test_unknown_key_names_the_nearest_known_one(key: str, nearest: str) -> None:
    """A slip of the pen is refused with the key that was probably meant."""
    message = refusal(with_value(key, 1))
    assert f"did you mean '{nearest}'?" in message


def test_unknown_key_without_a_near_one_lists_all() -> None:
    """When no key is near, all keys of that section are named."""
    assert "one of host, insecure_remote, port" in refusal(with_value("api.zzz", 1))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("guard.lease_s", 0.1, "more than daemon.tick_s (0.1 s)"),
        ("instance.0.stale_after_s", 0.5, "more than instance[0].poll_s (0.5 s)"),
        ("instance.0.scrape_deadline_s", 1.5, "less than instance[0].stale_after_s (1.5 s)"),
        ("instance.0.tp", 2, "a divisor of the number of GPUs"),
        ("slo", {}, "at least one promise"),
        ("policy", {"floor_mhz": 900, "ceiling_mhz": 600}, "at most policy.ceiling_mhz (600 MHz)"),
    ],
)
def test_values_must_fit_together(key: str, value: object, expected: str) -> None:
    """Values that are valid alone but contradict each other are refused."""
    assert expected in refusal(with_value(key, value))


TLS = {"tls_cert": "/c", "tls_key": "/k"}
REMOTE = {"host": "192.0.2.1"}


@pytest.mark.parametrize(
    ("api", "told"),
    [
        (REMOTE, "api.tls_cert, api.tls_key and api.token_file"),
        ({"host": "0.0.0.0"}, "a loopback address"),
        ({"host": "::"}, "a loopback address"),
        ({"host": "kvwatt.example"}, "a loopback address"),
        ({"host": "127.0.0.1.example"}, "a loopback address"),
        (REMOTE | TLS, "api.token_file"),
        (REMOTE | {"token_file": "/t"}, "api.tls_cert"),
        ({"tls_cert": "/c"}, "api.tls_key: got 'nothing'"),
        ({"tls_key": "/k"}, "api.tls_cert: got 'nothing'"),
        ({"tcp": False}, "api.socket with the path"),
        ({"socket_mode": "rw"}, "api.socket_mode"),
        ({"socket": "relative"}, "absolute path"),
        ({"read_access": "anybody"}, "'loopback', 'token' or 'open'"),
        ({"writes_per_minute": 0}, "greater than or equal to 1"),
    ],
)
def test_an_interface_that_is_not_safe_is_refused(api: dict[str, object], told: str) -> None:
    """What others can reach needs TLS and tokens, unless it is said that something else protects it."""
    assert told in refusal(with_value("api", api))


@pytest.mark.parametrize(
    "api",
    [
        {"host": "localhost"},
        {"host": "127.8.9.1"},
        {"host": "::1"},
        REMOTE | TLS | {"token_file": "/t"},
        REMOTE | {"insecure_remote": True},
        REMOTE | {"tcp": False, "socket": "/run/kvwatt-api/api.sock"},
    ],
)
def test_an_interface_that_is_safe_is_accepted(api: dict[str, object]) -> None:
    """Loopback, TLS with tokens, only a unix socket, or said to be protected otherwise."""
    assert parse_config(with_value("api", api)).api.writes_per_minute == 60


def test_instances_have_unique_names_and_gpus_one_owner() -> None:
    """Two instances share neither a name nor a GPU, and both slips are told at once."""
    data = with_value("instance", BASE["instance"] * 2)
    message = refusal(data)
    assert "instance[1].name: got 'chat'" in message
    assert "owned by instance 'chat'" in message


def test_gpu_index_may_be_written_as_a_number() -> None:
    """gpus = [0] means the same as gpus = ["0"]."""
    assert parse_config(with_value("instance.0.gpus", [0])).instances[0].gpus == ("0",)


def test_all_problems_are_told_at_once() -> None:
    """One run shows every wrong key."""
    data = with_value("daemon.tick_s", 0)
    data["api"] = {"port": -1}
    with pytest.raises(ConfigError) as caught:
        parse_config(data)
    assert {p.key for p in caught.value.problems} == {"daemon.tick_s", "api.port"}


def test_environment_overrides_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """KVWATT_<SECTION>__<KEY> wins over the file and leaves the section's other keys alone."""
    monkeypatch.setenv("KVWATT_DAEMON__MODE", "active")
    monkeypatch.setenv("KVWATT_SLO__TBT__LIMIT_S", "0.2")
    config = parse_config(with_value("daemon.tick_s", 0.25))
    assert (config.daemon.mode, config.daemon.tick_s) == (Mode.ACTIVE, 0.25)
    assert config.slo_for("chat").tbt == SloTarget(0.2)


def test_bad_environment_is_refused_like_a_bad_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """An override is validated like a value of the file."""
    monkeypatch.setenv("KVWATT_DAEMON__TICK_S", "-1")
    assert "daemon.tick_s: got '-1'" in refusal(BASE)


def test_environment_variable_of_an_unknown_section_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt override is an error; variables without a section, such as KVWATT_HOME, are not ours."""
    monkeypatch.setenv("KVWATT_SIM_STATE", "/dev/shm/x")
    parse_config(BASE)
    monkeypatch.setenv("KVWATT_DEAMON__MODE", "active")
    assert "did you mean 'daemon'?" in refusal(BASE)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A missing file is told by its path."""
    with pytest.raises(ConfigError, match=r"none\.toml.*No such file"):
        load_config(tmp_path / "none.toml")


def test_broken_toml_is_told_with_its_line(tmp_path: Path) -> None:
    """A syntax error is told with file and line."""
    path = tmp_path / "kvwatt.toml"
    path.write_text("[daemon]\ntick_s = \n")
    with pytest.raises(ConfigError, match=r"kvwatt\.toml.*line 2"):
        load_config(path)


def test_non_utf8_file_is_refused(tmp_path: Path) -> None:
    """A file in another encoding is refused, not decoded by guess."""
    path = tmp_path / "kvwatt.toml"
    path.write_bytes(b"# \xff\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(path)
