"""docs/variants.md: its tables are HPA's arithmetic, and a real Prometheus answers what it and the samples ask."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from tests.deploy.kustomized import DEPLOY, build, needs_kubectl
from tests.hpa import SYNC_SECONDS, UP, Autoscaler, Policy, Tolerance, course
from tests.real_prometheus import running
from tests.variant_page import Told, page

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "variants.md").read_text()
HPA = ROOT / "deploy/example/variants-hpa"
KEDA = ROOT / "deploy/example/variants-keda"

OLD = Tolerance(before_1_33=True)
NEW = Tolerance()


def table(marker: str) -> list[list[str]]:
    """The cells of the table that follows `<!-- marker -->`, without its head."""
    [found] = re.findall(rf"<!-- {marker} -->\n\|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found.splitlines()]


def samples() -> Iterator[Any]:
    """The page's own blocks of YAML."""
    for text in re.findall(r"^ *```yaml\n(.*?)^ *```", PAGE, re.DOTALL | re.MULTILINE):
        yield yaml.safe_load(text)


def objects(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def hpa_of(name: str) -> dict[str, Any]:
    [found] = [item for item in objects(HPA / "hpa.yaml") if item["metadata"]["name"] == name]
    return found


# --- the arithmetic of an HPA ---


@pytest.mark.parametrize("current", range(1, 40))
def test_average_value_of_one_asks_for_what_the_metric_says(current: int) -> None:
    exact = Autoscaler(tolerance=Tolerance(0.0, 0.0))
    assert [exact.asked(wanted, current) for wanted in range(60)] == list(range(60))


@pytest.mark.parametrize("current", range(1, 10))
def test_value_of_one_asks_for_the_product(current: int) -> None:
    autoscaler = Autoscaler("Value", most=1000)
    assert [autoscaler.asked(wanted, current) for wanted in (0, 2, 3, 7)] == [0, 2 * current, 3 * current, 7 * current]
    # What nobody wants is kept for ever.
    assert autoscaler.asked(1, current) == current


def test_value_is_right_for_the_ratio_while_all_replicas_are_ready_and_too_little_while_some_load() -> None:
    autoscaler = Autoscaler("Value")
    assert [autoscaler.asked(wanted / 4, 4) for wanted in (1, 2, 4, 6, 8)] == [1, 2, 4, 6, 8]
    assert autoscaler.asked(8 / 4, 4, ready=1) == 2
    assert Autoscaler().asked(8, 4, ready=1) == 8


def test_a_metric_that_cannot_be_had_changes_nothing() -> None:
    assert course(Autoscaler(), [None, None], 3) == (3, 3)


def test_an_hpa_does_not_come_back_from_zero_and_goes_to_its_bounds_first() -> None:
    assert course(Autoscaler(), [5, 5], 0) == (0, 0)
    assert course(Autoscaler(least=2, most=6), [5], 1) == (2,)
    assert course(Autoscaler(least=2, most=6), [9], 3) == (6,)
    assert course(Autoscaler(least=2, most=6), [0], 8) == (6,)


def test_by_default_it_doubles_or_adds_four_and_shrinks_to_the_most_of_five_minutes() -> None:
    assert course(Autoscaler(most=100), [60] * 4, 1) == (5, 10, 20, 40)
    looks = int(300 / SYNC_SECONDS)
    assert course(Autoscaler(), [6, *([2] * looks)], 6) == (*([6] * looks), 2)


def test_policies_count_what_was_changed_within_their_period() -> None:
    slow = replace(UP, policies=(Policy("Pods", 2, 60),))
    assert course(Autoscaler(up=slow, most=20), [20] * 6, 1) == (3, 3, 3, 3, 5, 5)
    least = replace(UP, policies=(Policy("Pods", 2, 15), Policy("Percent", 50, 15)), select="Min")
    assert course(Autoscaler(up=least, most=20), [20], 10) == (12,)
    assert course(Autoscaler(up=replace(UP, select="Disabled"), most=20), [20], 10) == (10,)


# --- the tables ---


def test_the_table_of_the_runaway_is_what_an_hpa_does() -> None:
    rows = table("runaway")
    wanted = [float(row[1]) for row in rows]
    right = replace(Autoscaler.of(hpa_of("chat-l4")), most=20)
    courses = [course(autoscaler, wanted, 2) for autoscaler in (right, replace(right, kind="Value"))]
    assert [row[0] for row in rows] == [f"{i * SYNC_SECONDS:g} s" for i in range(len(rows))]
    assert [[int(cell) for cell in row[2:]] for row in rows] == [list(pair) for pair in zip(*courses, strict=True)]
    # It shows what the text says: to the top, and never back.
    assert [row[3] for row in rows][-3:] == ["20"] * 3
    assert [row[1] for row in rows][-1] == "1"


def lost(tolerance: Tolerance, current: int, sign: int) -> list[int]:
    autoscaler = Autoscaler(most=10**6, tolerance=tolerance)
    steps = range(1, current if sign < 0 else 3 * current)
    return [step for step in steps if autoscaler.asked(current + sign * step, current) == current]


def said(steps: Sequence[int]) -> str:
    return {0: "none", 1: "1"}.get(len(steps), f"1 to {len(steps)}")


def test_the_table_of_lost_steps_is_what_the_tolerance_swallows() -> None:
    rows = table("tolerance")
    covered = []
    for row in rows:
        first, _, last = row[0].partition(" to ")
        for current in range(int(first), int(last or first) + 1):
            covered.append(current)
            up = [lost(tolerance, current, +1) for tolerance in (OLD, NEW)]
            down = [lost(tolerance, current, -1) for tolerance in (OLD, NEW)]
            assert down[0] == down[1]
            assert row[1:] == [*map(said, up), said(down[0])], current
    assert covered == list(range(1, 41))


def test_the_page_shows_what_the_samples_have() -> None:
    shown = list(samples())
    [metrics] = [one["metrics"] for one in shown if "metrics" in one]
    assert metrics == hpa_of("chat-l4")["spec"]["metrics"]
    [triggers] = [one["triggers"] for one in shown if "triggers" in one]
    [scaled] = [one for one in objects(KEDA / "scaledobjects.yaml") if one["metadata"]["name"] == "chat-l4"]
    assert triggers == scaled["spec"]["triggers"]
    [variant] = [one for one in shown if one.get("kind") == "VariantAutoscaling"]
    sample = objects(ROOT / "deploy/example/variants/cheap.yaml")[0]
    assert variant["metadata"] == sample["metadata"]
    assert variant["spec"].items() <= sample["spec"].items()


@needs_kubectl
def test_the_kustomization_of_the_first_step_is_a_controller_that_is_scraped(tmp_path: Path) -> None:
    [mine] = [one for one in samples() if one.get("kind") == "Kustomization"]
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/kustomization.yaml").write_text(yaml.safe_dump(mine))
    built = build(tmp_path / "mine")
    assert built.names("ServiceMonitor") == built.names("Deployment") == {"vllm-chill-controller"}


# --- a real Prometheus ---

Vector = dict[frozenset[tuple[str, str]], float]

CHEAP = Told("chat-l4", desired=3, current=2, saturation=0.95, decided_at=0.0)
DEAR = Told("chat-h100", desired=1, current=1, saturation=0.4, decided_at=0.0, accelerator="NVIDIA-H100-80GB-HBM3")


class Controllers:
    """The two pods of a controller: what each has on its metrics page."""

    def __init__(self) -> None:
        self.pages = ["", ""]

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=self.pages[int(request.path.strip("/"))])


@contextlib.asynccontextmanager
async def scraped(controllers: Controllers, folder: Path) -> AsyncIterator[str]:
    """A Prometheus that scrapes both, as the component `monitor` has it done; its address."""
    async with RawTestServer(controllers) as server:
        jobs = [
            {
                "job_name": f"vllm-chill-controller-{pod}",
                "metrics_path": f"/{pod}",
                "scrape_interval": "1s",
                "honor_labels": False,
                "static_configs": [
                    {
                        "targets": [f"127.0.0.1:{server.port}"],
                        # As the operator labels what a ServiceMonitor finds.
                        "labels": {"namespace": "vllm-chill-system", "pod": f"vllm-chill-controller-{pod}"},
                    }
                ],
            }
            for pod in (0, 1)
        ]
        async with running(folder, {"scrape_configs": jobs}) as port:
            yield f"http://127.0.0.1:{port}"


async def vector(url: str, expression: str) -> Vector:
    """What an expression is now: the value of each series, by its labels; nothing while nobody answers yet."""
    with contextlib.suppress(aiohttp.ClientConnectionError):
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/api/v1/query", data={"query": expression}) as response,
        ):
            if response.status == 503:
                return {}
            said = await response.json()
            assert said["status"] == "success", (expression, said)
            return {frozenset(one["metric"].items()): float(one["value"][1]) for one in said["data"]["result"]}
    return {}


async def until(url: str, expression: str, expected: Mapping[str, float] | Vector) -> None:
    """Wait until the expression is these values; by variant, where labels are not of interest."""
    found: Vector = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while by_variant(found) != expected and found != expected:
                await asyncio.sleep(0.2)
                found = await vector(url, expression)
    assert by_variant(found) == expected or found == expected, f"{expression}: {found}"


def by_variant(found: Vector) -> dict[str, float]:
    return {dict(labels).get("variant_name", ""): value for labels, value in found.items()}


def queries() -> list[str]:
    [text] = re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL)
    return [re.sub(r"\s+", " ", query).strip() for query in re.split(r"^#.*\n", text, flags=re.MULTILINE) if query]


def rule() -> dict[str, Any]:
    [found] = objects(HPA / "prometheus-adapter-values.yaml")[0]["rules"]["external"]
    return dict(found)


def adapted(hpa: dict[str, Any], namespace: str) -> str:
    """What the adapter asks Prometheus for an HPA in a namespace."""
    [metric] = hpa["spec"]["metrics"]
    [label] = rule()["resources"]["overrides"]
    matchers = {label: namespace} | metric["external"]["metric"]["selector"]["matchLabels"]
    text = ",".join(f'{key}="{value}"' for key, value in matchers.items())
    asked: str = rule()["metricsQuery"].replace("<<.LabelMatchers>>", text)
    assert "<<" not in asked
    return asked


@pytest.mark.slow
async def test_the_samples_get_one_number_each_whoever_leads(tmp_path: Path) -> None:
    controllers = Controllers()
    controllers.pages[0] = page([CHEAP, DEAR])
    other = replace(CHEAP, namespace="elsewhere", desired=9)
    async with scraped(controllers, tmp_path) as url:
        asked = {name: adapted(hpa_of(name), "ai-apps") for name in ("chat-l4", "chat-h100")}
        scaled = {
            item["metadata"]["name"]: item["spec"]["triggers"][0]["metadata"]["query"]
            for item in objects(KEDA / "scaledobjects.yaml")
        }
        for name, desired in (("chat-l4", 3), ("chat-h100", 1)):
            await until(url, asked[name], {name: desired})
            await until(url, scaled[name], {"": desired})
        await until(url, f"count({rule()['seriesQuery']})", {"": 2})
        # Another variant of that name elsewhere; and the other pod takes over, so that for a moment both tell.
        controllers.pages = [page([CHEAP, DEAR, other]), page([replace(CHEAP, desired=5), DEAR])]
        await until(url, "count(wva_desired_replicas)", {"": 5})
        await until(url, asked["chat-l4"], {"chat-l4": 5})
        await until(url, scaled["chat-l4"], {"": 5})
        await until(url, asked["chat-h100"], {"chat-h100": 1})
        # A variant that is gone is nothing to anybody, and not 0.
        controllers.pages = ["", page([DEAR])]
        await until(url, "count(wva_desired_replicas)", {"": 1})
        assert await vector(url, asked["chat-l4"]) == {}
        assert await vector(url, scaled["chat-l4"]) == {}


@pytest.mark.slow
async def test_the_samples_hpa_follows_what_the_page_says(tmp_path: Path) -> None:
    controllers = Controllers()
    autoscaler, replicas = Autoscaler.of(hpa_of("chat-l4")), 2
    async with scraped(controllers, tmp_path) as url:
        for i, desired in enumerate((3, 8, 4, 1)):
            controllers.pages[0] = page([replace(CHEAP, desired=desired, current=replicas)])
            asked = adapted(hpa_of("chat-l4"), "ai-apps")
            await until(url, asked, {"chat-l4": desired})
            # An HPA adds up all that it is given.
            metric = sum((await vector(url, asked)).values())
            replicas, autoscaler = autoscaler.look(i * SYNC_SECONDS, metric, replicas)
            assert replicas == desired


@pytest.mark.slow
async def test_every_query_of_the_page_says_what_its_comment_says(tmp_path: Path) -> None:
    controllers, now = Controllers(), time.time()
    cheap = replace(CHEAP, decided_at=now - 1000, scaled={("up", "Saturated"): 1})
    controllers.pages[0] = page([cheap, replace(DEAR, decided_at=now)])
    async with scraped(controllers, tmp_path) as url:
        missing, full, silent, often = queries()
        await until(url, missing, {"chat-l4": 3})
        await until(url, full, {"chat-l4": 0.95})
        [(labels, seconds)] = (await vector(url, silent)).items()
        assert dict(labels) == {"variant_name": "chat-l4", "exported_namespace": "ai-apps"}
        assert 1000 <= seconds < 1100
        await until(url, f"{often} == 0", {"chat-l4": 0})
        controllers.pages[0] = page([replace(cheap, scaled={("up", "Saturated"): 3})])
        await until(url, f"{often} > bool 1", {"chat-l4": 1})
