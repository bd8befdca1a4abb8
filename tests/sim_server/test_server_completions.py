"""OpenAI completions from the simulated server over real HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

PROMPT = list(range(40))


async def test_a_stream_has_one_event_per_token_and_ends_with_done(client: Any) -> None:
    """max_tokens events of one token each, the last with its finish reason, then [DONE]."""
    answer = await client.stream(prompt=PROMPT, max_tokens=7)
    assert answer.done
    assert [choice["finish_reason"] for choice in answer.choices] == [None] * 6 + ["length"]
    assert answer.tokens == 7
    assert len({event["id"] for event in answer.events}) == 1
    assert all(event["object"] == "text_completion" and event["model"] == "sim" for event in answer.events)
    assert all("usage" not in event for event in answer.events)


async def test_usage_comes_last_when_asked_for(client: Any) -> None:
    """include_usage adds one event without choices that counts prompt and answer."""
    answer = await client.stream(prompt=PROMPT, max_tokens=3, stream_options={"include_usage": True})
    assert answer.events[-1]["choices"] == []
    assert answer.events[-1]["usage"] == {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43}


async def test_continuous_usage_counts_up(client: Any) -> None:
    """continuous_usage_stats tells after each token how many there are."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = await client.stream(prompt=PROMPT, max_tokens=3, stream_options=options)
    assert [event["usage"]["completion_tokens"] for event in answer.events] == [1, 2, 3, 3]


@pytest.mark.parametrize(("prompt", "tokens"), [("x" * 40, 10), ("x" * 41, 11), ("x", 1), (PROMPT, 40)])
async def test_prompt_length_is_counted(client: Any, prompt: object, tokens: int) -> None:
    """Token ids count one each, text one per four characters begun."""
    answer = (await client.post(prompt=prompt, max_tokens=1)).json()
    assert answer["usage"]["prompt_tokens"] == tokens


async def test_several_prompts_and_completions_are_choices_in_order(client: Any) -> None:
    """n completions per prompt, numbered through."""
    answer = (await client.post(prompt=[[1, 2, 3], [4, 5]], n=2, max_tokens=4)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert all(choice["text"].count("token") == 4 for choice in answer["choices"])
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 16,
        "total_tokens": 21,
        "prompt_tokens_details": None,
    }


async def test_streams_of_several_choices_are_told_apart_by_index(client: Any) -> None:
    """Each choice of a stream gets all its tokens and its own finish reason."""
    answer = await client.stream(prompt=["first prompt", "second"], max_tokens=5)
    for index in (0, 1):
        reasons = [choice["finish_reason"] for choice in answer.choices if choice["index"] == index]
        assert reasons == [None] * 4 + ["length"]


@pytest.mark.parametrize(
    ("body", "header", "tokens", "reason"),
    [
        ({"vllm_xargs": {"output_tokens": 3}}, None, 3, "stop"),
        ({}, "4", 4, "stop"),
        ({"vllm_xargs": {"output_tokens": 3}}, "4", 3, "stop"),
        ({"vllm_xargs": {"output_tokens": 3}, "min_tokens": 5}, None, 5, "stop"),
        ({"vllm_xargs": {"output_tokens": 99}}, None, 8, "length"),
        ({"ignore_eos": True}, None, 8, "length"),
    ],
)
async def test_the_load_generator_can_say_how_long_the_answer_gets(
    client: Any, body: dict[str, object], header: str | None, tokens: int, reason: str
) -> None:
    """The hint ends an answer before max_tokens as a stop token would, within min_tokens and max_tokens."""
    headers = {} if header is None else {"x-output-tokens": header}
    request = {"prompt": PROMPT, "max_tokens": 8, **body}
    answer = (await client.http.post("/v1/completions", json=request, headers=headers)).json()
    assert answer["usage"]["completion_tokens"] == tokens
    assert answer["choices"][0]["finish_reason"] == reason


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"prompt": PROMPT, "model": "other"}, 404, "other"),
        ({"prompt": [1] * 40_000}, 400, "40000"),
        ({"prompt": PROMPT, "max_tokens": 40_000}, 400, "40000"),
        ({"prompt": PROMPT, "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": PROMPT, "min_tokens": 20}, 400, "min_tokens"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [[]]}, 400, "prompt"),
        ({"prompt": [1, -1]}, 400, "prompt"),
        ({"max_tokens": 3}, 400, "prompt"),
        ({"prompt": PROMPT, "vllm_xargs": {"output_tokens": 0}}, 400, "output_tokens"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(
    client: Any, body: dict[str, object], status: int, named: str
) -> None:
    """An OpenAI error object says which field was wrong; the server goes on."""
    response = await client.post(**body)
    assert response.status_code == status
    assert response.json()["error"]["code"] == status
    assert named in response.text


async def test_a_broken_body_or_header_is_refused(client: Any) -> None:
    """Neither half a JSON document nor a hint that is no number reaches the engine."""
    broken = await client.http.post("/v1/completions", content=b'{"prompt": ')
    odd = await client.http.post(
        "/v1/completions", json={"prompt": PROMPT}, headers={"x-output-tokens": "many"}
    )
    assert (broken.status_code, odd.status_code) == (400, 400)
    assert "many" in odd.text


async def test_vllm_state_routes_answer(client: Any) -> None:
    """Health, ping, version, models and load look as on vLLM 0.32."""
    assert (await client.http.get("/health")).status_code == 200
    assert (await client.http.get("/ping")).status_code == 200
    assert (await client.http.get("/version")).json() == {"version": "0.32.0"}
    model = (await client.http.get("/v1/models")).json()["data"][0]
    assert (model["id"], model["max_model_len"]) == ("sim", 32768)
    asking = asyncio.create_task(client.post(prompt=PROMPT, max_tokens=2000))
    await client.page_when(lambda page: page.value("vllm:num_requests_running") == 1)
    assert (await client.http.get("/load")).json() == {"server_load": 1}
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await client.page_when(lambda page: page.value("vllm:num_requests_running") == 0)
