# One image for the API and the worker: `serve` is the default command, `worker` the other.
# CUDA comes with torch, so any Debian base with Python 3.11 or newer works.
ARG BASE=python:3.13-slim

# hadolint ignore=DL3006
FROM ${BASE} AS build
# pip has a separate environment, so that the image does not contain it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/pip \
    && python3 -m venv --without-pip /opt/sleb
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_PYTHON=/opt/sleb/bin/python
WORKDIR /src

# requirements.lock pins every package by its hashes. Without the file, these are the newest in their ranges.
FROM build AS requirements
COPY docker/requirements.py pyproject.toml requirements.loc[k] ./
RUN for part in all torch rest; do python3 requirements.py "$part" > "$part.txt"; done

# The dependencies have a separate layer, which is rebuilt only when their list changes.
# TORCH=cpu takes torch without CUDA from TORCH_CPU_INDEX, the index of PyTorch's CPU builds: far
# smaller, for the CPU alone. Without that index, pip installs its default torch, which includes CUDA.
# A secret `pip.conf` may name another index: docker build --secret id=pip.conf,src=FILE ...
FROM build AS dependencies
ARG TORCH=cuda
ARG TORCH_CPU_INDEX=
COPY --from=requirements /src/all.txt /src/torch.txt /src/rest.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    case "${TORCH}${TORCH_CPU_INDEX:+-index}" in \
        cuda|cuda-index|cpu) list=all.txt ;; \
        cpu-index) list=rest.txt; /opt/pip/bin/pip install --no-deps --index-url "${TORCH_CPU_INDEX}" --requirement torch.txt ;; \
        *) echo "TORCH is ${TORCH}, but has to be cuda or cpu" >&2; exit 2 ;; \
    esac \
    && /opt/pip/bin/pip install --requirement "$list"

FROM build AS application
COPY pyproject.toml README.md ./
COPY pruning ./pruning
COPY app ./app
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/pip/bin/pip install --no-deps --root /staged .

# hadolint ignore=DL3006
FROM ${BASE}
# Fixed ids, so that the owner of a volume is known. The folders set the owner of a new volume.
RUN groupadd --gid 10001 sleb \
    && useradd --uid 10001 --gid sleb --home-dir /data --no-create-home --shell /usr/sbin/nologin sleb \
    && install -d -o sleb -g sleb /data /data/models /data/texts /data/checkpoints

COPY --from=build /usr/bin/tini-static /usr/bin/tini
COPY --from=dependencies /opt/sleb /opt/sleb
COPY --from=application /staged /

# The root file system may be read-only: all files are written to /data or /tmp.
# The API does not start beyond loopback without a key: `keys create NAME --scope admin` comes first.
ENV PATH=/opt/sleb/bin:$PATH \
    HOME=/data \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/data/huggingface \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    SLEB_DATA_DIR=/data \
    SLEB_HOST=0.0.0.0
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000

# Loading models may take minutes, during which the API is alive but not ready.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('SLEB_PORT', '8000') + '/health/ready', timeout=4)"]
# tini reaps zombie processes and forwards signals.
ENTRYPOINT ["tini", "--", "sleb"]
CMD ["serve"]

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sleb-serve" \
      org.opencontainers.image.description="Depth-pruned language models, served beside their dense parents" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
