# The guard: root with CAP_SYS_ADMIN and nothing else, no network, standard library and NVML's bindings only.
#   docker build -f deploy/containers/guard.Dockerfile -t kvwatt-guard .        (in the root of a checkout)
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-pip \
 && rm -rf /var/lib/apt/lists/*
# Only what the guard imports; a test runs it from these files alone.
COPY daemon/kvwattd/__init__.py daemon/kvwattd/logs.py daemon/kvwattd/sdnotify.py daemon/kvwattd/shortages.py /opt/kvwatt/kvwattd/
COPY daemon/kvwattd/guard /opt/kvwatt/kvwattd/guard
COPY deploy/containers/guard_init.py deploy/containers/guard_health.py /opt/kvwatt/
RUN pip install --no-cache-dir --no-deps --target /opt/kvwatt 'nvidia-ml-py>=12.560,<14' \
 && python3 -m compileall -q /opt/kvwatt \
 && chmod -R go-w /opt/kvwatt

FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -m 0755 /etc/kvwatt \
 && install -d -m 0700 /var/lib/kvwatt-guard \
 && install -d -m 0750 -g 8484 /run/kvwatt
COPY --from=build /opt/kvwatt /opt/kvwatt
COPY --chmod=0644 deploy/containers/guard.toml /etc/kvwatt/guard.toml
# PYTHONPATH instead of a virtual environment: the interpreter is Debian's, read-only. The container toolkit adds
# the driver's libnvidia-ml for `utility`, no CUDA.
ENV PYTHONPATH=/opt/kvwatt PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=utility
# Group 8484 is the daemon's: its members may open the socket.
USER 0:8484
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=2 \
  CMD ["python3", "/opt/kvwatt/guard_health.py"]
ENTRYPOINT ["python3", "/opt/kvwatt/guard_init.py"]
