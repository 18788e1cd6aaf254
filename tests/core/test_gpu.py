from __future__ import annotations

from collections.abc import Mapping

import pytest

from vllm_chill.core.gpu import requested_gpus, visible_gpus


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1, 2,3"}, 4),
        ({"CUDA_VISIBLE_DEVICES": "GPU-6c6a1fd2-0d3c-4f0a-9f0e-3f0f9a6a2a51,MIG-1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,1,-1,3"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "0,0"}, 1),
        ({"HIP_VISIBLE_DEVICES": "0,1"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "0,1,2"}, 3),
        ({"HIP_VISIBLE_DEVICES": "0,1", "CUDA_VISIBLE_DEVICES": "0"}, 1),
    ],
)
def test_how_many_gpus_a_process_sees(environment: Mapping[str, str], gpus: int | None) -> None:
    assert visible_gpus(environment) == gpus


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ({}, None),
        ({"cpu": "4", "memory": "64Gi", "ephemeral-storage": "1Gi"}, None),
        ({"nvidia.com/gpu": "2", "cpu": "4"}, 2),
        ({"nvidia.com/gpu": 2}, 2),
        ({"nvidia.com/gpu": "0"}, 0),
        ({"amd.com/gpu": "8"}, 8),
        ({"nvidia.com/mig-3g.40gb": "1"}, 1),
        ({"nvidia.com/gpu.shared": "1"}, 1),
        ({"gpu.intel.com/i915": "1"}, 1),
        ({"nvidia.com/gpumem": "4000"}, None),
        ({"gpu.intel.com/memory.max": "8"}, None),
        ({"nvidia.com/gpu": "much"}, None),
    ],
)
def test_how_many_gpus_a_container_asks_for(resources: Mapping[str, object], gpus: int | None) -> None:
    assert requested_gpus(resources) == gpus
