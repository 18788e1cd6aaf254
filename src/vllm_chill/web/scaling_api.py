"""How many replicas the targets have, why, and a number that is set by hand: /proxy/scaling/*.

The rule: nothing here writes or wakes. A number that is set is handed to the target's autoscaler, which keeps it within
its bounds; a target that sleeps has it once a request wakes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import unquote

import structlog
from aiohttp import web
from msgspec import to_builtins
from msgspec.structs import replace

from vllm_chill.api.scaling_answers import (
    AdjustAsked,
    Adjusted,
    Policies,
    PolicyAnswer,
    ReplicaMetrics,
    ScalingMetrics,
    TargetMetrics,
)
from vllm_chill.api.scaling_told import (
    SHOWN,
    Moment,
    count_of,
    latency_of,
    override_answer,
    policy_answer,
    replica_metrics,
)
from vllm_chill.api.spec_types import seconds
from vllm_chill.api.status import phase_name
from vllm_chill.core.cold_start import duration
from vllm_chill.core.phrases import listed
from vllm_chill.core.routing import Route
from vllm_chill.core.scaling import words
from vllm_chill.core.scaling.override import Override
from vllm_chill.core.scaling.report import Facts, conditions
from vllm_chill.core.target import Ready, Waking
from vllm_chill.errors import BadRequest, NoPolicy, NotScaling, ReplicaNotFound
from vllm_chill.proxy.served import Directory
from vllm_chill.web import asked
from vllm_chill.web.scaled import Scaled, ScaledTargets, Scaler

_EXAMPLE = '{"model": "NAME", "targetReplicas": 2, "ttl": "1h"}'
_SHOWN_PODS = 20
_LONGEST_NAME = 100
_USER = "X-Forwarded-User"


class ScalingApi:
    """The scaling of one proxy's targets; `scalers` are by the name of their target."""

    def __init__(
        self,
        directory: Directory,
        scalers: Mapping[str, Scaler],
        *,
        override_ttl_seconds: float,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._targets = ScaledTargets(directory, scalers)
        self._ttl_seconds = override_ttl_seconds
        self._wall = wall
        self._log = structlog.get_logger("vllm_chill.scaling")

    async def metrics(self, _: web.BaseRequest) -> web.Response:
        """Every replica of every target, with what is measured of it."""
        answer = ScalingMetrics(
            timestamp=self._wall().isoformat(timespec="milliseconds"),
            targets=[self._measured(one) for one in self._targets.every()],
        )
        return web.json_response(to_builtins(answer))

    async def pod_metrics(self, request: web.BaseRequest) -> web.Response:
        """One replica. Raises ReplicaNotFound with those there are, and BadRequest where several have the name."""
        pod, target = _last_part(request, Route.PROXY_SCALING_POD), request.query.get("target")
        among = self._targets.every() if target is None else (self._targets.meant(target),)
        found = [one for one in among if any(replica.name == pod for replica in one.members)]
        if not found:
            raise _no_replica(pod, among)
        if len(found) > 1:
            which = " or ".join(f"?target={one.name}" for one in found)
            raise BadRequest(f'{len(found)} targets have a replica "{pod}"; say which one is meant: {which}')
        [metrics] = (one for one in self._replicas(found[0]) if one.pod == pod)
        return web.json_response(to_builtins(metrics))

    async def replicas(self, request: web.BaseRequest) -> web.Response:
        """Set the number of replicas for a while, or with DELETE have the policy decide again."""
        if request.method == "DELETE":
            return self._release(self._targets.meant(request.query.get("model")), _who(request, None))
        wish = await asked.body(request, AdjustAsked, _EXAMPLE)
        if wish is None:
            raise BadRequest(f"the body is empty; send JSON such as {_EXAMPLE}")
        scaled = self._targets.meant(wish.model)
        scaler = self._require_scaling(scaled)
        ttl_seconds = self._ttl_seconds if wish.ttl is None else seconds(wish.ttl)
        override = scaler.adjust(int(wish.target_replicas), _who(request, wish.by), ttl_seconds)
        return self._adjusted(scaled, override)

    async def policies(self, _: web.BaseRequest) -> web.Response:
        """Every policy in force."""
        answers = [(one, self._policy(one)) for one in self._targets.every()]
        answer = Policies(
            policies=[answer for _, answer in answers if answer is not None],
            without_policy=[one.name for one, answer in answers if answer is None],
        )
        return web.json_response(to_builtins(answer))

    async def policy(self, request: web.BaseRequest) -> web.Response:
        """The policy of one target. Raises NoPolicy."""
        scaled = self._targets.meant(_last_part(request, Route.PROXY_SCALING_POLICY))
        answer = self._policy(scaled)
        if answer is None:
            raise NoPolicy(_unscaled(scaled))
        return web.json_response(to_builtins(answer))

    # What is told.

    def _moment(self, scaled: Scaled) -> Moment:
        return Moment(scaled.controller.now(), self._wall())

    def _measured(self, scaled: Scaled) -> TargetMetrics:
        target, moment = scaled.controller.target, self._moment(scaled)
        samples = {} if scaled.scaler is None else scaled.scaler.meter.of_target(SHOWN)
        return TargetMetrics(
            target=scaled.name,
            model=scaled.model,
            phase=phase_name(target.phase),
            replicas=count_of(target),
            held_requests=target.waiting,
            latency=latency_of(samples, moment),
            pods=list(self._replicas(scaled)),
        )

    def _replicas(self, scaled: Scaled) -> Iterator[ReplicaMetrics]:
        moment = self._moment(scaled)
        read = () if scaled.scaler is None else scaled.scaler.meter.members(SHOWN)
        readings = {reading.name: reading for reading in read}
        served = None if scaled.served is None else scaled.served.controller
        for replica in scaled.members:
            yield replica_metrics(
                replica,
                readings.get(replica.name),
                moment,
                target=scaled.name,
                model=scaled.model,
                leaving=served is not None and replica.name in served.leaving,
                in_flight=served.outstanding(replica.endpoint) if served and replica.endpoint else None,
            )

    def _policy(self, scaled: Scaled) -> PolicyAnswer | None:
        scaler, moment = scaled.scaler, self._moment(scaled)
        if scaler is None or scaler.policy is None:
            return None
        return policy_answer(
            scaler.policy,
            scaler.decision,
            moment,
            target=scaled.name,
            model=scaled.model,
            source=scaler.source or scaler.policy.name,
            replicas=count_of(scaled.controller.target),
            override=scaler.override,
            conflict=scaler.conflict,
            conditions=conditions(
                Facts(
                    policy=scaler.policy,
                    target=scaled.controller.target,
                    decision=scaler.decision,
                    conflict=scaler.conflict,
                    fronted=scaler.fronted,
                    observe_only=scaled.controller.observe_only,
                    at=moment.now,
                )
            ),
        )

    # What is set by hand.

    def _require_scaling(self, scaled: Scaled) -> Scaler:
        scaler, name = scaled.scaler, scaled.name
        if scaler is None or scaler.policy is None:
            raise BadRequest(_unscaled(scaled))
        if scaled.controller.observe_only:
            raise NotScaling(
                "this proxy recommends numbers of replicas and writes none (--mode recommend); set the replicas of "
                f"{name} where they are written."
            )
        _require_lead(scaled)
        if scaler.conflict is not None:
            raise NotScaling(f"{name} is left to others, as {scaler.conflict}; set its replicas there, or end that.")
        return scaler

    def _adjusted(self, scaled: Scaled, override: Override) -> web.Response:
        phase, moment = scaled.controller.target.phase, self._moment(scaled)
        many = words.replicas(override.replicas)
        until = f"for {duration(override.until - moment.now)}, until {moment.text(override.until)}"
        if isinstance(phase, Waking | Ready):
            message = f"{scaled.name} is to have {many} {until}."
        else:
            message = f"{scaled.name} is {phase_name(phase)}; while it is awake it is to have {many} {until}."
        return self._told(scaled, override, message)

    def _release(self, scaled: Scaled, by: str) -> web.Response:
        scaler = scaled.scaler
        _require_lead(scaled)
        if scaler is None or scaler.override is None:
            return self._told(scaled, None, f"Nobody has set the replicas of {scaled.name}.")
        scaler.release()
        self._log.info("no longer adjusted", target=scaled.name, by=by)
        return self._told(scaled, None, f"The scaling policy of {scaled.name} decides again.")

    def _told(self, scaled: Scaled, override: Override | None, message: str) -> web.Response:
        count = count_of(scaled.controller.target)
        if override is not None:
            count = replace(count, desired=override.replicas)
        answer = Adjusted(
            message=message,
            target=scaled.name,
            model=scaled.model,
            replicas=count,
            override=override_answer(override, self._moment(scaled)),
        )
        return web.json_response(to_builtins(answer))


def _require_lead(scaled: Scaled) -> None:
    """Raise NotScaling where another one of several proxies decides."""
    if not scaled.controller.target.shared.leads:
        raise NotScaling(
            f"another proxy decides on the replicas of {scaled.name}: ask that one, which GET "
            f"{Route.PROXY_STATUS.value} names, or try again, as a Service passes on to each in its turn."
        )


def _unscaled(scaled: Scaled) -> str:
    return (
        f"{scaled.name} has no scaling policy, so it has 1 replica at the most; in Kubernetes, apply a "
        "vLLMScalingPolicy whose scaleTargetRef names it, annotate it with vllm-chill.io/autoscale and "
        "vllm-chill.io/max-replicas, or give its model a maxReplicas above 1."
    )


def _last_part(request: web.BaseRequest, route: Route) -> str:
    """The name with which the path of such a route ends."""
    prefix = route.value.partition("{")[0]
    return unquote(request.raw_path.partition("?")[0].removeprefix(prefix))


def _no_replica(pod: str, among: Sequence[Scaled]) -> ReplicaNotFound:
    names = [replica.name for one in among for replica in one.members]
    if not names:
        asleep = f"{among[0].name} has none" if len(among) == 1 else "nothing is awake"
        return ReplicaNotFound(f'there is no replica "{pod}", as {asleep}.')
    return ReplicaNotFound(f'there is no replica "{pod}"; there are {listed(names, _SHOWN_PODS)}')


def _who(request: web.BaseRequest, by: str | None) -> str:
    """Who asks, for people: the name that stands with the request, and the address that it came from."""
    name = _printable(request.headers.get(_USER, "")) or _printable(by or "")
    peer = request.remote or "an unknown address"
    return f"{name} ({peer})" if name else peer


def _printable(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_LONGEST_NAME]
