"""A candidate as a process of its own, which says on its standard output when it leads.

candidate.py KUBECONFIG NAMESPACE NAME IDENTITY LEASE RENEW RETRY (seconds)
"""

from __future__ import annotations

import asyncio
import sys

from vllm_chill.adapters.kubernetes.client import connect
from vllm_chill.adapters.kubernetes.leases import KubernetesLease
from vllm_chill.control.election import Election
from vllm_chill.core.election import Terms


async def lead() -> None:
    sys.stdout.write("leading\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


async def main(kubeconfig: str, namespace: str, name: str, identity: str, *seconds: str) -> None:
    async with connect(kubeconfig) as api:
        store = KubernetesLease(api, namespace, name)
        await Election(store, identity, Terms(*map(float, seconds))).run(lead)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
