"""The one taxonomy of what can go wrong: what happened, what to answer, and whether to try again.

Every message is a sentence for the person who reads it, with the next step in it. The HTTP side of an error
(status, type, code, Retry-After) is data here and becomes an answer in one place, the edge of the proxy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar


class ChillError(Exception):
    """The root of everything that vllm-chill raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class SettingError(ChillError):
    """A setting has a value that cannot be used; the program ends with exit status 2."""


class AskFailed(ChillError):
    """What a command asked for was not done: the proxy, or the cluster, says no. The command ends with `exit_status`.

    `answer` is the error as the proxy answered with it, where it is the proxy's; `code` is what programs tell it apart
    by where it is not.
    """

    exit_status: ClassVar[int] = 1
    code: ClassVar[str] = "failed"

    def __init__(self, message: str, *, answer: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.answer = answer


class CannotBeAsked(AskFailed):
    """Nobody answers where the proxy, or the API server, is said to be, or somebody else does. `reason` is what was
    found, without where.
    """

    exit_status = 3
    code = "cannot_be_asked"

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or message


class NotAllowed(AskFailed):
    """Whoever asks has no key or token, or one that is not for this."""

    exit_status = 4
    code = "not_allowed"


class TimeOver(AskFailed):
    """What is waited for did not come in the time that there was."""

    exit_status = 5
    code = "time_over"


class NoCredentials(SettingError):
    """No way to a Kubernetes API server was found."""


class InvalidObject(ChillError):
    """An object of a custom resource cannot be used. `name` is the object's, empty if it has none; `problems` has a
    sentence for everything that is wrong with it.
    """

    what: ClassVar[str]

    def __init__(self, name: str, problems: tuple[str, ...]) -> None:
        super().__init__(f'the {self.what} "{name}" cannot be used: {"; ".join(problems)}')
        self.name = name
        self.problems = problems


class InvalidModel(InvalidObject):
    """A model's object cannot be used."""

    what = "model"


class InvalidPolicy(InvalidObject):
    """A scaling policy's object, or a target's annotations that ask for scaling, cannot be used."""

    what = "scaling policy"


class InvalidVariant(InvalidObject):
    """A variant's object cannot be used."""

    what = "variant"


class InvalidKeys(ChillError):
    """A file of API keys cannot be used; `problems` has a sentence for everything that is wrong with it, none of which
    says what may be a key.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class BackendError(ChillError):
    """A backend could not do what it was asked to."""


class BackendUnavailable(BackendError):
    """The backend cannot be reached now; asking again later may work, and not before `retry_after_seconds`."""

    def __init__(self, message: str, *, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class BackendConflict(BackendUnavailable):
    """What is to be written has changed since it was read; reading it again and writing anew may work."""


class BackendRefused(BackendError):
    """The backend understood and said no (no such target, no right, a quota): asking again changes nothing."""


class AnswerableError(ChillError):
    """An error that a caller of the proxy is answered with.

    `status` is the HTTP status; `type` and `code` go into OpenAI's error envelope; `retry_after_seconds`, if
    any, becomes the Retry-After header.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class BadRequest(AnswerableError):
    """The request cannot be forwarded as it stands."""

    status = 400
    type = "invalid_request_error"
    code = "bad_request"


class Unauthenticated(AnswerableError):
    """Nobody knows who asks: there is no key in the request, or one that is not known."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(AnswerableError):
    """It is known who asks, and they may not."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class ModelForbidden(Forbidden):
    """The key is not for this model."""

    code = "model_not_allowed"


class RateLimited(AnswerableError):
    """The key's requests come faster than they may."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class HeadTooLarge(AnswerableError):
    """The head of the request is larger than is taken."""

    status = 431
    type = "invalid_request_error"
    code = "head_too_large"


class RequestTooLarge(AnswerableError):
    """The body of the request is larger than is taken."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RequestTimeout(AnswerableError):
    """The request did not come in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class MethodNotAllowed(AnswerableError):
    """The path is the proxy's own and does not take this method; `allowed` are those that it takes."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, allowed: Iterable[str]) -> None:
        super().__init__(message)
        self.allowed = tuple(sorted(allowed))


class NotFound(AnswerableError):
    """There is nothing at the path: nothing of the proxy's own, or nothing that wakes the target."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(AnswerableError):
    """The request names a model that the target does not have."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class ReplicaNotFound(AnswerableError):
    """There is no replica of this name, or more than one."""

    status = 404
    type = "invalid_request_error"
    code = "replica_not_found"


class NoPolicy(AnswerableError):
    """Nothing says how the target is to be scaled."""

    status = 404
    type = "invalid_request_error"
    code = "no_policy"


class NotScaling(AnswerableError):
    """Whoever scales the target, it is not this proxy."""

    status = 409
    type = "invalid_request_error"
    code = "not_scaling"


class NoCatalogue(AnswerableError):
    """What is asked for needs a catalogue of models, and this proxy has one target."""

    status = 409
    type = "invalid_request_error"
    code = "no_catalogue"


class ExpectationFailed(AnswerableError):
    """The request expects something of the proxy that it does not do."""

    status = 417
    type = "invalid_request_error"
    code = "expectation_failed"


class InternalError(AnswerableError):
    """A bug of ours: the log has the traceback."""


class StopFailed(AnswerableError):
    """The backend did not put the target to sleep."""

    status = 503
    type = "service_unavailable"
    code = "stop_failed"


class SwitchFailed(AnswerableError):
    """The model that was switched to could not be made ready, or the one before not put to sleep."""

    status = 503
    type = "service_unavailable"
    code = "switch_failed"


class RightsUnknown(AnswerableError):
    """Whoever knows what the caller may do cannot be asked now."""

    status = 503
    type = "service_unavailable"
    code = "rights_unknown"


class NoGpuStats(AnswerableError):
    """Nothing here tells how the GPUs are."""

    status = 503
    type = "service_unavailable"
    code = "no_gpu_stats"


class NoLogs(AnswerableError):
    """Nothing here tells what the engine writes."""

    status = 404
    type = "invalid_request_error"
    code = "no_logs"


class LogsUnavailable(AnswerableError):
    """What the engine writes cannot be read now; the message has the reason."""

    status = 503
    type = "service_unavailable"
    code = "logs_unavailable"


class TooManyFollowers(AnswerableError):
    """As many follow the output of engines as may."""

    status = 429
    type = "rate_limit_error"
    code = "too_many_followers"


class ServiceUnavailable(AnswerableError):
    """The target cannot serve now, and may later."""

    status = 503
    type = "service_unavailable"


class HoldExpired(ServiceUnavailable):
    """The target did not become ready within the time that a caller is held."""

    code = "model_waking"


class HoldCancelled(AnswerableError):
    """An operator has sent the caller away that was held. No 503: SDKs would send the request again at once."""

    status = 499
    type = "invalid_request_error"
    code = "cancelled_by_operator"


class RequestNotHeld(AnswerableError):
    """The request that is to be sent away is not held here, or no longer."""

    status = 404
    type = "invalid_request_error"
    code = "request_not_held"


class TooManyListeners(AnswerableError):
    """As many follow the events as may."""

    status = 429
    type = "rate_limit_error"
    code = "too_many_listeners"


class TooManyConnections(ServiceUnavailable):
    """There are as many connections as may be, and none of them is idle."""

    code = "too_many_connections"


class TooManyWaiting(AnswerableError):
    """As many callers wait for the target as may."""

    status = 429
    type = "rate_limit_error"
    code = "too_many_waiting"


class HoldRefused(ServiceUnavailable):
    """The caller would rather be told to come again than be held; the target is being woken meanwhile."""

    code = "model_waking"


class HoldBudgetSpent(ServiceUnavailable):
    """The bodies of held requests take as much memory as they may."""

    code = "hold_budget_spent"


class WakeFailed(ServiceUnavailable):
    """The target could not be woken; the message has the cause."""

    code = "wake_failed"


class TargetUnknown(ServiceUnavailable):
    """The backend has not yet told the state of the target."""

    code = "backend_unavailable"


class CatalogueUnknown(ServiceUnavailable):
    """The models have not been read yet."""

    code = "models_unknown"


class UpstreamError(AnswerableError):
    """The upstream failed before the first byte of its response: nothing has reached the caller."""

    status = 502
    type = "bad_gateway"


class UpstreamRefused(UpstreamError):
    """The upstream took no connection."""

    code = "upstream_refused"


class UpstreamReset(UpstreamError):
    """The upstream closed the connection before it answered."""

    code = "upstream_reset"


class UpstreamInvalid(UpstreamError):
    """The upstream answered with something that is not HTTP."""

    code = "upstream_invalid"


class AdapterFailed(UpstreamError):
    """The upstream did not load the adapter that the request asks for."""

    code = "adapter_failed"


class UpstreamSilent(UpstreamError):
    """The upstream did not answer in time."""

    status = 504
    type = "gateway_timeout"
    code = "upstream_silent"


class ResponseCut(ChillError):
    """The upstream died within its response; the caller's connection was closed, so that it cannot mistake
    what it has for the whole.
    """
