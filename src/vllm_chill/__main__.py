"""`python -m vllm_chill` is `vllm-chill`."""

from vllm_chill.cli import main

main()
