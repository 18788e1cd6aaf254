"""Serves a GGUF with llama.cpp's own server until SIGTERM: a real engine that is ready in a fraction of a second.

usage: serve_llama_cpp.py FILE.gguf PORT
"""

from __future__ import annotations

import signal
import sys

import xllamacpp


def main(path: str, port: str) -> None:
    # Before its threads start, for they inherit this: the signals are for sigwait alone.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {"tiny"}
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.n_ctx = 4096
    params.n_parallel = 2
    params.cpuparams.n_threads = 1
    params.endpoint_metrics = True
    params.warmup = False
    params.cache_prompt = False  # an answer must not depend on what was asked before
    server = xllamacpp.Server(params)
    sys.stdout.write(f"llama.cpp listens on {server.listening_address}\n")
    sys.stdout.flush()
    signal.sigwait(ends)
    sys.stdout.write("llama.cpp was told to stop\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
