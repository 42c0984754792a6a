# syntax=docker/dockerfile:1
# The service in one container: API, embedded Postgres and a worker. Another base (CUDA, a company's own) must bring
# Python 3.11 or newer as `python3`, with venv.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /src
RUN python3 -m venv /opt/wsb
COPY requirements.lock ./
# An extra index for another build of torch (the CPU one is far smaller) goes in here.
ARG PIP_EXTRA_INDEX_URL=
RUN /opt/wsb/bin/pip install --no-cache-dir --disable-pip-version-check -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY wsb_engine wsb_engine
COPY service service
RUN /opt/wsb/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps .

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="wsb" \
      org.opencontainers.image.description="Certified sharpness of trained classifiers over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --create-home --home-dir /var/lib/wsb --shell /usr/sbin/nologin wsb
COPY --from=build /opt/wsb /opt/wsb
ENV PATH=/opt/wsb/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    WSB_DATA_DIR=/var/lib/wsb \
    WSB_LOG_FORMAT=json
USER 10001
VOLUME /var/lib/wsb
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["wsb", "serve", "--host", "0.0.0.0", "--port", "8000"]
