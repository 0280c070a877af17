# The sidecar: the serving install only, neither torch nor transformers.
#   docker build -f docker/sidecar.Dockerfile -t titlecast-sidecar .

FROM python:3.12-slim AS build
RUN python -m venv /opt/titlecast && python -m venv /opt/build
WORKDIR /build
# What it needs and what it is built with, exactly and by hash; `python docker/lock.py` renews both.
COPY docker/requirements.txt docker/build.txt docker/
RUN /opt/titlecast/bin/pip install --no-cache-dir --require-hashes -r docker/requirements.txt \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r docker/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY reranker reranker
COPY indexing indexing
COPY plugin plugin
# Without isolation, for which pip would fetch whatever the index has of the build's tools.
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/titlecast/bin/pip install --no-cache-dir --no-deps --no-index dist/*.whl

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
