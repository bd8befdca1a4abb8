# The daemon: user 8484, no privilege, no build tools in the image.
#   docker build -f deploy/containers/daemon.Dockerfile -t kvwatt .             (in the root of a checkout)
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY predictor predictor
COPY daemon daemon
COPY simulator simulator
RUN python3 -m venv /opt/kvwatt \
 && /opt/kvwatt/bin/pip install --no-cache-dir '.[kubernetes,report]' \
 && /opt/kvwatt/bin/pip uninstall -y -q setuptools pip
COPY deploy/containers/daemon_health.py /opt/kvwatt/

FROM ${BASE}
# libgomp: LightGBM's only need beyond Python.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 8484 kvwatt \
 && useradd --uid 8484 --gid 8484 --no-create-home --home-dir /var/lib/kvwatt --shell /usr/sbin/nologin kvwatt \
 && install -d -m 0755 /etc/kvwatt \
 && install -d -m 0750 -o 8484 -g 8484 /var/lib/kvwatt \
 && install -d -m 0750 -g 8484 /run/kvwatt
COPY --from=build /opt/kvwatt /opt/kvwatt
# `utility`: to read power, energy and clocks through NVML. Setting clocks needs a capability it does not have.
ENV PATH=/opt/kvwatt/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=utility
USER 8484:8484
WORKDIR /var/lib/kvwatt
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "/opt/kvwatt/daemon_health.py"]
ENTRYPOINT ["kvwatt"]
CMD ["run", "--config", "/etc/kvwatt/kvwatt.toml"]
