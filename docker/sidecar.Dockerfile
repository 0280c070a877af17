# The sidecar: the serving install only, neither torch nor transformers.
#   docker build -f docker/sidecar.Dockerfile -t titlecast-sidecar .

FROM python:3.12-slim AS build
RUN python -m venv /opt/titlecast
WORKDIR /build
# What it needs, exactly and by hash; `python docker/lock.py` renews it.
COPY docker/requirements.txt docker/requirements.txt
RUN /opt/titlecast/bin/pip install --no-cache-dir --require-hashes -r docker/requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY reranker reranker
COPY indexing indexing
COPY plugin plugin
RUN /opt/titlecast/bin/pip install --no-cache-dir --no-deps .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home titlecast
COPY --from=build /opt/titlecast /opt/titlecast
# Its user has no home folder: what `titlecast index` remembers of a load lies in /tmp.
ENV PATH=/opt/titlecast/bin:$PATH PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1 \
    XDG_STATE_HOME=/tmp/state TITLECAST_HOST=0.0.0.0
USER 10001
EXPOSE 8900
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-m", "plugin.sidecar.health"]
CMD ["titlecast", "serve"]
