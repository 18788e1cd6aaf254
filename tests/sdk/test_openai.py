"""OpenAI's own package before a sleeping engine: what its user sees of a hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from aiohttp import web
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionUserMessageParam

from tests.scenarios.stage import Stage, stage
from tests.sdk.demo import WORDS, demo, heard, learn
from tests.sdk.tap import Tap, tapped
from vllm_chill.control.lease import Bounds
from vllm_chill.core.target import Asleep, Ready, Waking
from vllm_chill.proxy.hold_terms import HoldOptions, JsonHold

MESSAGES: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Are you there?"}]
NO_MEMORY = "torch.OutOfMemoryError: no memory"


@dataclass
class Here:
    """The SDK's client, what goes over its wire, and the proxy."""

    client: AsyncOpenAI
    tap: Tap
    proxy: Stage

    async def streamed(self, **headers: str) -> tuple[list[str | None], str]:
        """The finish reasons of all chunks, and the text."""
        stream = await self.client.chat.completions.create(
            model="demo", messages=MESSAGES, stream=True, extra_headers=headers
        )
        choices = [chunk.choices[0] async for chunk in stream]
        return [choice.finish_reason for choice in choices], "".join(choice.delta.content or "" for choice in choices)

    async def completion(self, **headers: str) -> ChatCompletion:
        return await self.client.chat.completions.create(model="demo", messages=MESSAGES, extra_headers=headers)

    async def asked(self, **headers: str) -> str:
        content = (await self.completion(**headers)).choices[0].message.content
        assert content is not None
        return content


@asynccontextmanager
async def in_front(*, retries: int = 0, **more: Any) -> AsyncIterator[Here]:
    """A client of the SDK that tries so often again, before a proxy; `more` as the demo has it."""
    async with (
        demo(**more) as proxy,
        tapped(proxy.url) as tap,
        AsyncOpenAI(base_url=tap.url + "/v1", api_key="sk-none", max_retries=retries) as client,
    ):
        yield Here(client, tap, proxy)


class TestAStreamThatIsHeld:
    async def test_its_comments_are_invisible_and_its_text_is_whole(self) -> None:
        async with in_front(terms=heard()) as here:
            held = await here.streamed()
            assert len(here.tap.comments) >= 3
            assert here.tap.comments[0].startswith(": waking: ")
            assert all(comment.startswith(": ") for comment in here.tap.comments)
            warm = await here.streamed()
            assert held == warm
            assert held[0][-1] == "stop"
            assert set(held[0][:-1]) == {None}
            assert held[1].startswith(WORDS)

    async def test_it_begins_while_the_target_still_wakes(self) -> None:
        async with in_front(terms=heard(), start=1) as here:
            stream = await here.client.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
            assert here.proxy.phase_is(Waking)
            first = await anext(aiter(stream))
            assert here.proxy.phase_is(Ready)
            assert first.choices[0].delta.role == "assistant"
            await stream.close()

    async def test_a_failure_is_raised_with_the_proxys_words(self) -> None:
        async with in_front(terms=heard()) as here:
            here.proxy.backend.fail_start = NO_MEMORY
            stream = await here.client.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
            with pytest.raises(openai.APIError, match=f"could not be woken: {NO_MEMORY}") as raised:
                await anext(aiter(stream))
            assert raised.value.code == "wake_failed"
            assert raised.value.type == "service_unavailable"
            assert here.tap.comments
            assert here.tap.statuses == ["200"]
            assert here.proxy.metric("vllm_chill_requests_total", route="proxied", method="POST", status="503") == 1

    async def test_what_the_engine_says_against_it_is_raised_with_the_engines_words(self) -> None:
        async with in_front(terms=heard()) as here:
            stream = await here.client.chat.completions.create(
                model="demo", messages=MESSAGES, stream=True, max_tokens=-1
            )
            with pytest.raises(openai.APIError, match="max_tokens must be"):
                await anext(aiter(stream))
            assert here.tap.statuses == ["200"]

    async def test_a_hold_that_is_over_is_raised_and_the_wake_goes_on(self) -> None:
        async with in_front(terms=heard(), start=1) as here:
            with pytest.raises(openai.APIError, match="still waking after") as raised:
                await here.streamed(**{"X-Wake-Timeout": "500ms"})
            assert raised.value.code == "model_waking"
            assert (await here.streamed())[1].startswith(WORDS)


class TestJsonThatIsHeld:
    async def test_in_silence_it_is_answered_when_the_target_is_ready(self) -> None:
        async with in_front(terms=heard()) as here:
            assert (await here.asked()).startswith(WORDS)
            assert here.tap.statuses == ["200"]

    async def test_spaces_before_it_are_no_matter(self) -> None:
        async with in_front(terms=heard(JsonHold.WHITESPACE)) as here:
            assert (await here.asked()).startswith(WORDS)
            _, _, body = bytes(here.tap.received).partition(b"\r\n\r\n")
            assert body.startswith(3 * b"1\r\n \r\n")

    async def test_a_failure_after_spaces_raises_nothing_and_is_in_the_answer(self) -> None:
        async with in_front(terms=heard(JsonHold.WHITESPACE)) as here:
            here.proxy.backend.fail_start = NO_MEMORY
            told: dict[str, Any] = (await here.completion()).to_dict()
            assert list(told) == ["error"], "there are no choices"
            assert told["error"]["code"] == "wake_failed"
            assert NO_MEMORY in told["error"]["message"]

    async def test_a_failure_in_silence_is_raised_with_its_status(self) -> None:
        async with in_front(terms=heard()) as here:
            here.proxy.backend.fail_start = NO_MEMORY
            with pytest.raises(openai.InternalServerError, match=NO_MEMORY) as raised:
                await here.asked()
            assert raised.value.status_code == 503
            assert raised.value.code == "wake_failed"
            assert int(raised.value.response.headers["Retry-After"]) >= 1


class TestAudioThatIsHeld:
    async def test_what_is_spoken_is_held_in_silence_and_comes_as_it_is(self) -> None:
        async def speak(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(body=b"RIFF", content_type="audio/wav")

        async with (
            stage(speak, start=0.3, terms=heard(JsonHold.WHITESPACE)) as proxy,
            AsyncOpenAI(base_url=proxy.url + "/v1", api_key="sk-none") as client,
        ):
            spoken = await client.audio.speech.create(model="demo", voice="alloy", input="Are you there?")
            assert spoken.content == b"RIFF"

    async def test_what_is_written_down_too(self) -> None:
        async def write_down(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(text="I am.")

        async with (
            stage(write_down, start=0.3, terms=heard(JsonHold.WHITESPACE)) as proxy,
            AsyncOpenAI(base_url=proxy.url + "/v1", api_key="sk-none") as client,
        ):
            said = await client.audio.transcriptions.create(
                model="demo", file=("a.wav", b"RIFF"), response_format="text"
            )
            assert said == "I am."


class TestTriedAgain:
    """By the SDK itself, after as long as Retry-After says."""

    @pytest.mark.parametrize("header", ["Prefer: wait=0", "X-Wake-Timeout: 0"])
    async def test_503_for_who_does_not_want_to_be_held(self, header: str) -> None:
        name, _, value = header.partition(": ")
        async with in_front(retries=2) as here:
            await learn(here.proxy)
            assert (await here.asked(**{name: value})).startswith(WORDS)
            assert here.tap.statuses == ["503", "200"]
            assert b"\r\nRetry-After: 1\r\n" in here.tap.received

    async def test_503_where_json_is_not_held(self) -> None:
        async with in_front(retries=2, terms=HoldOptions(json=JsonHold.FAIL)) as here:
            await here.streamed()
            assert (await here.proxy.post("/proxy/operations/stop"))[0] == 200
            here.tap.received.clear()
            assert (await here.asked()).startswith(WORDS)
            assert here.tap.statuses == ["503", "200"]

    async def test_429_for_who_comes_when_as_many_wait_as_may(self) -> None:
        async with in_front(retries=2, bounds=Bounds(waiting=1)) as here:
            await learn(here.proxy)
            async with AsyncOpenAI(base_url=here.proxy.url + "/v1", api_key="sk-first", max_retries=0) as first:
                held = asyncio.create_task(first.chat.completions.create(model="demo", messages=MESSAGES))
                await here.proxy.until(lambda: here.proxy.controller.target.waiting == 1)
                assert (await here.asked()).startswith(WORDS)
                assert here.tap.statuses == ["429", "200"]
                assert (await held).choices[0].finish_reason == "stop"


class TestHowLongItWaits:
    @pytest.mark.parametrize("header", ["Prefer: wait=1", "Prefer: respond-async, wait=1", "X-Wake-Timeout: 1s"])
    async def test_it_is_told_to_come_again_when_that_is_over(self, header: str) -> None:
        name, _, value = header.partition(": ")
        async with in_front(start=30) as here:
            with pytest.raises(openai.InternalServerError, match=r"held for 1 s; the wake goes on") as raised:
                await here.asked(**{name: value})
            assert raised.value.status_code == 503
            assert raised.value.code == "model_waking"
            assert int(raised.value.response.headers["Retry-After"]) >= 1
            assert here.proxy.phase_is(Waking)

    async def test_never_longer_than_the_server_lets_it(self) -> None:
        async with in_front(start=30, hold=0.2) as here:
            with pytest.raises(openai.InternalServerError, match=r"held for 0\.2 s"):
                await here.asked(Prefer="wait=600")

    async def test_a_time_that_is_none_is_a_bad_request(self) -> None:
        async with in_front() as here:
            with pytest.raises(openai.BadRequestError, match='"soon" is no time'):
                await here.asked(**{"X-Wake-Timeout": "soon"})
            assert here.proxy.phase_is(Asleep)
