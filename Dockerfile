# The image of vllm-chill: Python, a virtual environment in /opt/venv, and nothing else.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=0.1.0 --tag vllm-chill:0.1.0 .
#
# tests/docker/run-steps carries these steps out where there is no Docker engine.

# The tag fixes Python's minor version and Debian's release, and takes their security fixes. The provenance of a release
# says which digest that was; who has to build the same again writes it here, as python:3.13-slim-trixie@sha256:…
FROM python:3.13-slim-trixie AS base

FROM base AS build
# No pip in the environment: what is not there cannot install anything. The other one is what the package is built with.
RUN python -m venv --without-pip /opt/venv && python -m venv --without-pip /build/tools
# The dependencies change less often than the code, so they are a layer of their own. The files name each by version
# and hash, and only wheels are taken: there is no compiler here, for any platform.
COPY deploy/requirements.txt deploy/build-requirements.txt /build/
RUN python -m pip --python /build/tools/bin/python install --no-cache-dir --no-compile --only-binary :all: --require-hashes --requirement /build/build-requirements.txt \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --only-binary :all: --require-hashes --requirement /build/requirements.txt
COPY pyproject.toml README.md LICENSE /build/
COPY src /build/src
# The version comes from git's tags, and git is not here.
ARG VERSION=0.0.0
RUN SETUPTOOLS_SCM_PRETEND_VERSION="${VERSION}" \
    python -m pip --python /build/tools/bin/python wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /build/dist /build \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --no-deps --no-index /build/dist/*.whl
# Compiled once, here: the file system may be read-only where it runs. Python's own library too, of which the base
# image has the source alone, so that every start would compile it anew.
COPY deploy/compile.py /build/
RUN PYTHONPYCACHEPREFIX=/opt/venv/compiled /opt/venv/bin/python /build/compile.py

FROM base
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG BUILD_DATE=unknown
LABEL org.opencontainers.image.title="vllm-chill" \
      org.opencontainers.image.description="A reverse proxy that wakes vLLM when a request comes and puts it to sleep when nobody uses it." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/venv /opt/venv
# Log lines leave as they are written, and nothing is written beside the code.
# GET /proxy/version says which build it is.
# frozenlist in Python spares each proxy C++'s library, 1 MB of memory; no request goes through one.
ENV PATH="/opt/venv/bin:${PATH}" \
    FROZENLIST_NO_EXTENSIONS=1 \
    PYTHONPYCACHEPREFIX=/opt/venv/compiled \
    VLLM_CHILL_COMMIT="${REVISION}" \
    VLLM_CHILL_BUILD_DATE="${BUILD_DATE}" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# A number, as Kubernetes' runAsNonRoot cannot tell who a name is.
USER 65532:65532
EXPOSE 8080
# It drains on SIGTERM: give it --drain-timeout and a little more, as in `docker stop --time 630`.
STOPSIGNAL SIGTERM
# No HEALTHCHECK: Kubernetes ignores it, and it would start a Python every few seconds. Probes ask /health and
# /readyz, as deploy/deployment.yaml does.
ENTRYPOINT ["vllm-chill"]
CMD ["serve"]
