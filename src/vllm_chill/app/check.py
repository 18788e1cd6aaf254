"""What `serve` is asked to do, and the files that it names, looked at before it is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_chill.adapters.secret_files import keys_file, upstream_key_file
from vllm_chill.adapters.serving_certificate import from_files
from vllm_chill.app.plan import Plan
from vllm_chill.errors import SettingError

if TYPE_CHECKING:
    from vllm_chill.settings.serve import Settings


def check_all(settings: Settings, command: tuple[str, ...]) -> None:
    """Return if it could be done, as far as this machine alone can tell. Raises SettingError with a line for each thing
    that is wrong.
    """
    plan, problems = Plan(settings, command), list[str]()

    def try_models() -> None:
        from vllm_chill.adapters.models_file import read_models

        if plan.reads_models_first and plan.catalogue is not None:
            read_models(Path(plan.catalogue), gpu_count=settings.gpu_count, cpu_offload_gb=settings.cpu_offload_gb)

    def try_keys() -> None:
        if settings.api_keys_file is not None:
            keys_file(Path(settings.api_keys_file), lambda _: None)

    def try_upstream_key() -> None:
        if settings.upstream_api_key_file is not None:
            upstream_key_file(Path(settings.upstream_api_key_file), lambda _: None)

    def try_certificate() -> None:
        if settings.tls_cert is not None and settings.tls_key is not None:
            from_files(Path(settings.tls_cert), Path(settings.tls_key))

    for attempt in (try_models, try_keys, try_upstream_key, try_certificate):
        try:
            attempt()
        except SettingError as error:
            problems.append(error.message)
    if problems:
        raise SettingError("\n".join(problems))
