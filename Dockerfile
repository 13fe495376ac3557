# One image for the API and the worker: `serve` is the default command, `worker` the other.
ARG BASE=python:3.13-slim

# hadolint ignore=DL3006
FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/sleb
WORKDIR /src

# The dependencies have a layer of their own, which only a change of pyproject.toml builds anew.
# torch comes from pip's default index; --build-arg PIP_EXTRA_INDEX_URL=... adds one with other builds.
ARG PIP_EXTRA_INDEX_URL=
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > requirements.txt \
    && /opt/sleb/bin/pip install --requirement requirements.txt

COPY README.md ./
COPY pruning ./pruning
COPY app ./app
RUN /opt/sleb/bin/pip install --no-deps .

# hadolint ignore=DL3006
FROM ${BASE}
LABEL org.opencontainers.image.title="sleb-serve" \
      org.opencontainers.image.description="Depth-pruned language models, served beside their dense parents"

# Fixed ids, so that whoever owns a volume can be named; the folders give a new volume its owner.
RUN groupadd --gid 10001 sleb \
    && useradd --uid 10001 --gid sleb --home-dir /data --no-create-home --shell /usr/sbin/nologin sleb \
    && install -d -o sleb -g sleb /data /data/models /data/texts /data/checkpoints

COPY --from=build /opt/sleb /opt/sleb
# The root file system may be read-only: whatever is written goes to /data or /tmp.
ENV PATH=/opt/sleb/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/data/huggingface \
    SLEB_DATA_DIR=/data \
    SLEB_HOST=0.0.0.0
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000

# Loading models may take minutes, during which the API is alive but not ready.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('SLEB_PORT', '8000') + '/health/ready', timeout=4)"]
ENTRYPOINT ["sleb"]
CMD ["serve"]
