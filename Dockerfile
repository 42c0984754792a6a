# syntax=docker/dockerfile:1
# The service in one image: API, embedded Postgres, workers. See docs/deployment.md for how to build and run it.

# Debian or Ubuntu, or an image derived from them. If it has no python3, the distribution's is installed.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Packages to install from instead of an index: --build-context wheels=FOLDER replaces this stage by a folder. Without it
# the stage holds no packages.
FROM scratch AS wheels
COPY requirements.lock /

FROM ${BASE_IMAGE} AS dependencies
RUN set -eu; \
    command -v python3 >/dev/null || python="python3 python3-venv"; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends tini ${python:-}; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log; \
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "This base has a Python older than 3.11.")'; \
    useradd --uid 10001 --create-home --home-dir /var/lib/wsb --skel /nonexistent --shell /usr/sbin/nologin wsb
# An additional index for torch, since the build on PyPI is for CUDA.
ARG PIP_EXTRA_INDEX_URL=
# torch's tests and C++ headers are a tenth of the image; nothing here compiles.
RUN --mount=type=bind,from=wheels,target=/mnt/wheels \
    --mount=type=bind,source=requirements.lock,target=/mnt/requirements.lock \
    set -eu; \
    if ls /mnt/wheels/*.whl >/dev/null 2>&1; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/mnt/wheels; fi; \
    python3 -m venv /opt/wsb; \
    /opt/wsb/bin/pip install --no-cache-dir --disable-pip-version-check -r /mnt/requirements.lock; \
    rm -rf /opt/wsb/lib/python3.*/site-packages/torch/test /opt/wsb/lib/python3.*/site-packages/torch/include

FROM dependencies AS build
ARG PIP_EXTRA_INDEX_URL=
# Such as 1.2.3: the history that says it is not sent to the builder.
ARG VERSION=0.0.0
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY wsb wsb
COPY wsb_engine wsb_engine
COPY service service
RUN --mount=type=bind,from=wheels,target=/mnt/wheels \
    if ls /mnt/wheels/*.whl >/dev/null 2>&1; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/mnt/wheels; fi; \
    SETUPTOOLS_SCM_PRETEND_VERSION="$VERSION" \
    /opt/wsb/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-deps --wheel-dir /dist .

# The layer of the dependencies is large and seldom changes; that of the service, on top of it, is small.
FROM dependencies
ARG VERSION=0.0.0
LABEL org.opencontainers.image.title="wsb" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.description="Certified sharpness of trained classifiers over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN --mount=type=bind,from=build,source=/dist,target=/mnt/dist \
    /opt/wsb/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-index /mnt/dist/*.whl
ENV PATH=/opt/wsb/bin:$PATH \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    WSB_DATA_DIR=/var/lib/wsb \
    WSB_LOG_FORMAT=json
USER 10001:10001
VOLUME /var/lib/wsb
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# Process 1 must reap orphans, which tini does.
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["wsb", "serve", "--host", "0.0.0.0", "--port", "8000"]
