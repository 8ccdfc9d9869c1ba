# edgeproxy in a container. For production: docker build -t edgeproxy:0.1.0 .
# For a trial in one container, with Redis and PostgreSQL inside: docker build --build-arg 'EXTRAS=[embedded]' .
#
# An official Python image: those are built with profile-guided and link-time optimisation, which is worth CPU on every
# request. Debian's slim variant, because every dependency has a ready-made wheel for it, so that no compiler is needed.
# The tag is one of versions, not `latest`; where builds have to be the same to the byte, add its @sha256 digest.
FROM python:3.12-slim-bookworm AS python

FROM python AS build
# Empty by default: what names its own stores needs no database server in its image, nor that server's security fixes.
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY config ./config
COPY edgeproxy ./edgeproxy
# Versions come from constraints.txt, and only wheels are taken: nobody's build script runs here but our own. pip also
# compiles to bytecode, which cannot be written down any more once it runs.
RUN python -m venv --without-pip /opt/edgeproxy \
 && pip --python /opt/edgeproxy install --no-cache-dir --disable-pip-version-check --only-binary :all: \
        --constraint constraints.txt ".${EXTRAS}"

FROM python
LABEL org.opencontainers.image.title="edgeproxy" \
      org.opencontainers.image.description="A metered, private front door to AI models" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# The number is fixed, because secrets are files that have to belong to it. An embedded PostgreSQL wants it to have a
# name.
RUN useradd --system --uid 10001 --home-dir /var/lib/edgeproxy --create-home --shell /usr/sbin/nologin edgeproxy
# Root owns it, so what answers requests cannot change its own program.
COPY --from=build /opt/edgeproxy /opt/edgeproxy
ENV PATH=/opt/edgeproxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    EDGEPROXY_DATA_DIR=/var/lib/edgeproxy
# A number, so that an orchestrator can see that it is not root.
USER 10001
# The root filesystem may be read-only. Only embedded stores write: to this folder, and to /tmp, where their sockets
# are.
#   docker run --read-only --tmpfs /tmp -v edgeproxy:/var/lib/edgeproxy --network host ...
# Not a VOLUME: each gateway would get one, and leave it behind. Nothing is EXPOSEd: plain HTTP is spoken on loopback
# only, unless listen.trusted_proxies or a certificate says otherwise; config/compose.yaml shows that.
WORKDIR /var/lib/edgeproxy
# No shell, and not urllib, which would ask the proxy that an environment variable names. `healthz`, not `readyz`: a
# Redis that is away is no reason to restart the gateway. A role other than serve or gateway needs another check.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-I", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8080, timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
# An orderly stop: open answers end within bounds.drain_ms. Give `docker stop` more time than that: --time 60.
STOPSIGNAL SIGTERM
# Not through a shell, which would keep the signal to itself.
ENTRYPOINT ["edgeproxy"]
CMD ["serve"]
