"""The demo engine: it stands where vLLM would, so that vllm-chill can be tried without a model or a GPU.

The rule: it behaves as vLLM does towards a proxy (nobody listens until it has loaded, tokens are streamed at a
pace, errors have OpenAI's envelope), and it says everywhere that it is no model. It is a program of its own and
imports nothing of the package.

    usage: python -m vllm_chill.demo_engine --port PORT [--load-seconds 3] [--tokens-per-second 20] [--model demo]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import re
import time
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

log = logging.getLogger("demo-engine")

NAME = "vllm-chill's demo engine"
_FINGERPRINT = "vllm-chill-demo"
_CONTEXT_TOKENS = 4096
_QUOTED_CHARACTERS = 200
_BODY_BYTES = 64 * 2**20
_SHUTDOWN_SECONDS = 1.0


class Refused(Exception):
    """A request that is answered with an error, in vLLM's words for it."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.status = status
        self.envelope = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(frozen=True, slots=True)
class Question:
    """One request for text. `max_tokens` None is as much as there is to say; `endless` never stops before that."""

    form: Literal["chat", "text"]
    prompt: str
    max_tokens: int | None
    endless: bool
    stream: bool
    usage_in_stream: bool


@dataclass(slots=True)
class DemoEngine:
    """What it is told at its start, and what it counts. Invariant: `running` is the number of answers under way."""

    model: str
    tokens_per_second: float
    running: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def words(self, question: Question) -> Iterator[tuple[str, str | None]]:
        """The tokens of the answer, the last of them with the reason why it is the last."""
        text = tokens_of(answer_to(question.prompt))
        if question.endless:
            limit = question.max_tokens or _CONTEXT_TOKENS
        else:
            limit = min(len(text), question.max_tokens or len(text))
        reason = "stop" if limit == len(text) and not question.endless else "length"
        for index, word in enumerate(itertools.islice(itertools.cycle(text), limit)):
            yield (f" {word}" if index else word), (reason if index == limit - 1 else None)

    async def generate(self, question: Question) -> AsyncGenerator[tuple[str, str | None], None]:
        """The same at the engine's pace; whoever stops listening stops it."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.running += 1
        try:
            for index, (word, reason) in enumerate(self.words(question), 1):
                await asyncio.sleep(began + index / self.tokens_per_second - loop.time())
                if reason is not None:
                    self.finished[reason] += 1
                yield word, reason
        finally:
            self.running -= 1

    # Handlers

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": f"{NAME}, which is not vLLM and has no model"})

    async def models(self, request: web.Request) -> web.Response:
        model = {
            "id": self.model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "vllm-chill-demo",
            "root": self.model,
            "parent": None,
            "max_model_len": _CONTEXT_TOKENS,
        }
        return web.json_response({"object": "list", "data": [model]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat_question(await self._body(request)))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, text_question(await self._body(request)))

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        question = chat_question(body) if "messages" in body else text_question(body)
        tokens = [zlib.crc32(word.encode()) % 32768 for word in tokens_of(question.prompt)]
        return web.json_response({"count": len(tokens), "max_model_len": _CONTEXT_TOKENS, "tokens": tokens})

    async def metrics(self, request: web.Request) -> web.Response:
        labels = f'engine="0",model_name="{self.model}"'
        lines = [
            "# HELP vllm:num_requests_running Answers under way in vllm-chill's demo engine.",
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{{{labels}}} {self.running}.0",
            "# HELP vllm:num_requests_waiting Always 0: the demo engine answers everyone at once.",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{{{labels}}} 0.0",
            "# HELP vllm:request_success_total Answers that were finished, by why they ended.",
            "# TYPE vllm:request_success_total counter",
            *(
                f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="{self.model}"}} '
                f"{self.finished[reason]}.0"
                for reason in ("stop", "length")
            ),
        ]
        content_type = "text/plain; version=0.0.4; charset=utf-8"
        return web.Response(body="\n".join([*lines, ""]).encode(), headers={"Content-Type": content_type})

    # Answers

    async def _body(self, request: web.Request) -> dict[str, Any]:
        try:
            body = json.loads(await request.read())
        except ValueError as error:
            raise Refused(f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise Refused("the body is not a JSON object")
        if body.get("model") not in (None, "", self.model):
            raise Refused(
                f"The model `{body['model']}` does not exist; {NAME} has `{self.model}` only.",
                status=404,
                kind="NotFoundError",
                param="model",
            )
        return body

    async def _answer(self, request: web.Request, question: Question) -> web.StreamResponse:
        identity = f"{'chatcmpl' if question.form == 'chat' else 'cmpl'}-demo-{next(self.numbers)}"
        if question.stream:
            return await self._streamed(request, question, identity)
        words = [word async for word in self.generate(question)]
        text, reason = "".join(word for word, _ in words), words[-1][1]
        part = {"message": {"role": "assistant", "content": text}} if question.form == "chat" else {"text": text}
        choice = {"index": 0, **part, "logprobs": None, "finish_reason": reason}
        kind = "chat.completion" if question.form == "chat" else "text_completion"
        return web.json_response(self._envelope(identity, kind, [choice]) | {"usage": usage(question, len(words))})

    async def _streamed(self, request: web.Request, question: Question, identity: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        kind = "chat.completion.chunk" if question.form == "chat" else "text_completion"

        async def send(choices: list[dict[str, Any]], **more: object) -> None:
            await response.write(f"data: {json.dumps(self._envelope(identity, kind, choices) | more)}\n\n".encode())

        if question.form == "chat":
            await send([delta_of({"role": "assistant", "content": ""}, None)])
        count = 0
        async with contextlib.aclosing(self.generate(question)) as words:
            async for word, reason in words:
                count += 1
                await send([delta_of({"content": word}, reason) if question.form == "chat" else text_of(word, reason)])
        if question.usage_in_stream:
            await send([], usage=usage(question, count))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _envelope(self, identity: str, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": identity, "object": kind, "created": int(time.time()), "model": self.model}
        return head | {"choices": choices, "system_fingerprint": _FINGERPRINT}


def answer_to(prompt: str) -> str:
    """What the demo engine says to a prompt: always the same, and that it is no model."""
    quoted = " ".join(prompt.split())
    if len(quoted) > _QUOTED_CHARACTERS:
        quoted = f"{quoted[:_QUOTED_CHARACTERS]}..."
    return (
        f'This is {NAME}, not a model: nothing here was thought. You wrote: "{quoted}". '
        "These words are streamed at a steady pace, as a model's would be, so that you can watch the proxy: "
        "it woke me because you asked, it keeps me awake while you read, and it puts me to sleep once nobody asks."
    )


def tokens_of(text: str) -> list[str]:
    """The words of a text, which count as its tokens."""
    return re.findall(r"\S+", text)


def delta_of(delta: dict[str, str], reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def text_of(word: str, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": word, "logprobs": None, "finish_reason": reason}


def usage(question: Question, completion_tokens: int) -> dict[str, int]:
    prompt_tokens = len(tokens_of(question.prompt))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chat_question(body: dict[str, Any]) -> Question:
    """Parse the body of a chat completion; raises Refused."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise Refused("messages must be a list of objects with role and content", param="messages")
    return _question("chat", _text_in(messages[-1].get("content")), body)


def text_question(body: dict[str, Any]) -> Question:
    """Parse the body of a completion; raises Refused."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        prompt = " ".join(map(str, prompt))
    if not isinstance(prompt, str):
        raise Refused("prompt must be a string or a list", param="prompt")
    return _question("text", prompt, body)


def _text_in(content: object) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _question(form: Literal["chat", "text"], prompt: str, body: dict[str, Any]) -> Question:
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    max_tokens = body.get(name)
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise Refused(f"{name} must be a whole number of at least 1", param=name)
    options = body.get("stream_options")
    return Question(
        form,
        prompt,
        max_tokens,
        endless=bool(body.get("ignore_eos")),
        stream=bool(body.get("stream")),
        usage_in_stream=isinstance(options, dict) and bool(options.get("include_usage")),
    )


@web.middleware
async def _enveloped(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as refused:
        return web.json_response(refused.envelope, status=refused.status)


def app_of(engine: DemoEngine) -> web.Application:
    """The demo engine as an aiohttp application."""
    app = web.Application(middlewares=[_enveloped], client_max_size=_BODY_BYTES)
    app.add_routes(
        [
            web.get("/health", engine.health, allow_head=False),
            web.get("/version", engine.version, allow_head=False),
            web.get("/metrics", engine.metrics, allow_head=False),
            web.get("/v1/models", engine.models, allow_head=False),
            web.post("/v1/chat/completions", engine.chat),
            web.post("/v1/completions", engine.complete),
            web.post("/tokenize", engine.tokenize),
        ]
    )
    return app


async def _loaded(engine: DemoEngine, load_seconds: float) -> web.Application:
    log.info("%s starts; it has no model, and takes %g s as if it loaded one", NAME, load_seconds)
    await asyncio.sleep(load_seconds)
    log.info("%s is loaded and listens now", NAME)
    return app_of(engine)


def main() -> None:
    """Run it as the command line says, until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m vllm_chill.demo_engine", description=f"{NAME}; it has no model.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--load-seconds", type=float, default=3.0, help="nobody listens before (default: 3)")
    parser.add_argument("--tokens-per-second", type=float, default=20.0, help="of each answer (default: 20)")
    parser.add_argument("--model", default="demo", help="the name of what it serves (default: demo)")
    args = parser.parse_args()
    if args.tokens_per_second <= 0:
        parser.error("--tokens-per-second must be more than 0")
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    web.run_app(
        _loaded(DemoEngine(args.model, args.tokens_per_second), args.load_seconds),
        host=args.host,
        port=args.port,
        shutdown_timeout=_SHUTDOWN_SECONDS,
        access_log=None,
        print=None,
        # A client that hangs up ends its answer.
        handler_cancellation=True,
    )


if __name__ == "__main__":
    main()
