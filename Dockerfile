FROM python:3.11-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HUB_DATA=/data STATIC_ROOT=/srv/static
RUN useradd --system --uid 10001 --home-dir /data hub \
    && install --directory --owner=hub --group=hub /data /data/files
COPY requirements.lock /
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /requirements.lock /wheels/*.whl
# The settings of the embedded mode are enough to collect static files; nothing of them stays in the image.
RUN HUB_DATA=/tmp/hub python -m hub collectstatic --no-input && rm -rf /tmp/hub
USER hub
WORKDIR /data
EXPOSE 8000
CMD ["uvicorn", "hub.asgi:application", "--host", "0.0.0.0", "--port", "8000", "--ws", "notifications.server.websocket:HubWebSocketProtocol", "--timeout-graceful-shutdown", "10", "--no-access-log", "--no-proxy-headers"]
