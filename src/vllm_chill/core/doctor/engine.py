"""What an awake engine answers: whether it is healthy, lets the proxy in, and serves the model it is to serve. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_chill.core.command import served_models
from vllm_chill.core.doctor.finding import Check, Finding, failure, ok, seen, unknown
from vllm_chill.core.doctor.paste import kubectl
from vllm_chill.core.doctor.picture import Asked, EngineAnswer, Picture
from vllm_chill.core.doctor.pod_template import engine_of, pod_spec, words_of
from vllm_chill.core.phrases import listed


def find_engine(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether each ready replica answers as a model that is served does."""
    assert isinstance(picture.target, dict)
    answers = seen(picture.engines)
    if not answers:
        yield ok("it is asleep, so no engine was asked; nothing is woken for this")
        return
    known = served_models(["vllm", *words_of(engine_of(pod_spec(picture.target)))])
    names = tuple(model.id for model in known.models) if known is not None else ()
    for answer in answers:
        yield _one(asked, answer, names)


def _one(asked: Asked, answer: EngineAnswer, names: tuple[str, ...]) -> Finding:
    logs = kubectl(asked.namespace, "logs", answer.pod, "--tail=50")
    if answer.trouble:
        inside = kubectl(asked.namespace, "exec", "deploy/vllm-chill", "--", "vllm-chill", "doctor")
        return unknown(answer.trouble, "where pods are reached, as in the proxy's own, this can be looked at", inside)
    if answer.health != 200:
        return failure(
            f"{answer.pod} is ready, and {answer.url}{asked.health_path} answers {answer.health}",
            "give --health-path if its health page is another one, or see what the engine says",
            logs,
        )
    if answer.listing in (401, 403):
        key = "the one in --upstream-api-key-file" if asked.upstream_key else "no key"
        return failure(
            f"{answer.pod} answers {answer.listing} to a list of its models, asked with {key}",
            "give the engine's --api-key in a file by --upstream-api-key-file",
        )
    if answer.listing != 200:
        return failure(
            f"{answer.pod} is healthy, and {answer.url}/v1/models answers {answer.listing}",
            "see what the engine says",
            logs,
        )
    lacking = [name for name in names if name not in answer.models]
    if lacking:
        return failure(
            f"{answer.pod} serves {listed(answer.models, 3) or 'no model'}, and is to serve {listed(lacking, 3)}",
            "see which configuration it runs with; a file of its own may say another --served-model-name",
            logs,
        )
    return ok(f"{answer.pod} is healthy and serves {listed(answer.models, 3)}")


ENGINE = Check(
    "engine",
    "`--health-path` and `/v1/models` of each ready replica, if it is awake; nothing is woken",
    "the model's name is not the one that callers give, or the engine wants a key",
    "`--served-model-name`, `--upstream-api-key-file`, `--health-path`",
    find_engine,
)
