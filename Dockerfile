# Search server over an index folder; docs/search.md tells how to run it.

FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
# --build-arg TORCH_INDEX=URL takes PyTorch from another package index: that of its builds without CUDA makes the image
# several gigabytes smaller. The address is in PyTorch's installation guide.
ARG TORCH_INDEX=
# Extras of hgsl; add heic where the photos are those of an iPhone, remote where they are at HTTP addresses.
ARG EXTRAS=serve,milvus
RUN python -m venv /opt/hgsl \
    && /opt/hgsl/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision \
    && /opt/hgsl/bin/pip install --no-cache-dir ".[${EXTRAS}]"

FROM python:3.12-slim
# libgomp: OpenMP threads of PyTorch and FAISS.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin hgsl
COPY --from=build /opt/hgsl /opt/hgsl
# Nothing is written but caches in /tmp, and nothing is downloaded: the index folder brings its model.
ENV PATH=/opt/hgsl/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    TMPDIR=/dev/shm \
    HF_HUB_OFFLINE=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4).close()"]
ENTRYPOINT ["hgsl", "search", "serve", "--index", "/index", "--host", "0.0.0.0", "--port", "8000"]
