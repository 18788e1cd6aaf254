"""What targets of this machine are known to take, and where what they saved is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from vllm_chill.adapters.mask import Mask
from vllm_chill.adapters.savings_file import SavingsFile
from vllm_chill.app.plan import Plan
from vllm_chill.app.world import gpus_of_command, open_ground
from vllm_chill.settings.serve import load_settings


@pytest.mark.parametrize(
    ("argv", "environment", "gpus"),
    [
        pytest.param(("vllm", "serve", "a"), {}, 1, id="a vLLM that does not say"),
        pytest.param(("vllm", "serve", "a"), {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 1, id="one that sees more"),
        pytest.param(
            ("vllm", "serve", "a", "-tp", "4"), {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 4, id="one that says four"
        ),
        pytest.param(("vllm", "serve", "a"), {"CUDA_VISIBLE_DEVICES": ""}, 0, id="one that sees none"),
        pytest.param(("llama-server",), {"CUDA_VISIBLE_DEVICES": "0,1"}, 2, id="another engine takes what it sees"),
        pytest.param(("llama-server",), {}, None, id="nobody knows"),
    ],
)
def test_the_gpus_of_a_command(argv: tuple[str, ...], environment: Mapping[str, str], gpus: int | None) -> None:
    assert gpus_of_command(argv, environment) == gpus


async def file_of(folder: Path | str, *command: str, **flags: str) -> Path | None:
    plan = Plan(load_settings({"backend": "process", "state_dir": str(folder), **flags}), command)
    async with open_ground(plan, Mask()) as ground:
        store = ground.savings_store()
        assert store is None or isinstance(store, SavingsFile)
        return None if store is None else store.path


async def test_the_same_model_with_other_arguments_goes_on_in_the_same_file(tmp_path: Path) -> None:
    first = await file_of(tmp_path, "vllm", "serve", "org/a")
    assert first is not None
    assert first.parent == tmp_path
    assert await file_of(tmp_path, "vllm", "serve", "org/a", "--max-model-len", "4096") == first
    assert await file_of(tmp_path, "vllm", "serve", "org/b") != first
    assert await file_of(tmp_path, "./serve", "a") != await file_of(tmp_path, "./serve", "b")
    assert await file_of("", "vllm", "serve", "org/a") is None


async def test_models_of_a_file_are_kept_together_by_its_path(tmp_path: Path) -> None:
    models = tmp_path / "models.yaml"
    models.write_text("models:\n  a: {modelName: org/a}\n")
    found = await file_of(tmp_path, models=str(models))
    assert found is not None
    assert found.name.startswith("savings-models-")


@pytest.mark.parametrize(
    ("flags", "gpus"),
    [
        ({}, None),
        ({"gpu_count": "4"}, 4),
        ({"gpu_count": "0"}, 0),
        ({"gpu_count": "4", "models": "models.yaml"}, None),
    ],
)
def test_the_settings_say_how_many_gpus_the_one_target_has(flags: dict[str, str], gpus: int | None) -> None:
    command = () if "models" in flags else ("vllm", "serve", "a")
    assert Plan(load_settings({"backend": "process", **flags}), command).gpus == gpus
