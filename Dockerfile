# edgeproxy in a container. The official Python images are built with profile-guided optimisation, which is worth some
# CPU per request; a distribution's own Python often is not.

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY config ./config
COPY edgeproxy ./edgeproxy
# Every version is pinned: the same sources give the same image. `embedded` brings the Redis and PostgreSQL binaries.
RUN python -m venv /opt/edgeproxy \
 && /opt/edgeproxy/bin/pip install --no-cache-dir --constraint constraints.txt '.[embedded]'

FROM python:3.12-slim
COPY --from=build /opt/edgeproxy /opt/edgeproxy
# An account of its own, so that nothing in the container runs as root; its home is where embedded stores live.
RUN useradd --system --uid 10001 --home-dir /var/lib/edgeproxy --create-home --shell /usr/sbin/nologin edgeproxy
ENV PATH=/opt/edgeproxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    EDGEPROXY_DATA_DIR=/var/lib/edgeproxy
USER 10001
WORKDIR /var/lib/edgeproxy
VOLUME /var/lib/edgeproxy
# Plain HTTP is served on loopback only, so nothing is EXPOSEd: run the container in the network namespace of the proxy
# that speaks TLS (or with `--network host`).
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
# Not a shell: signals reach the program, which ends open streams within its grace period.
ENTRYPOINT ["edgeproxy"]
CMD ["serve"]
