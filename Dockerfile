# fooproxy, foo-server and foo-client in an image.  docs/containers.rst says how to build and run it.
#
# HEALTHCHECK is kept only by images in Docker's format: podman build --format docker.

FROM docker.io/library/debian:bookworm-slim AS build

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev python3-dev python3-venv

RUN python3 -m venv /opt/fooproxy
ENV PATH=/opt/fooproxy/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

WORKDIR /src

# Install the dependencies first, in a layer that is reused until they change.
# Both secrets are optional: a pip.conf that names another package index, and certificates to trust.
COPY setup.cfg .
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -c 'import configparser as c; p = c.ConfigParser(); p.read("setup.cfg"); print(p["options"]["install_requires"])' \
        > requirements.txt \
    && pip install "setuptools >= 64" wheel -r requirements.txt

COPY . .
# Fail the build if the core cannot be compiled.
RUN FOOPROXY_EXTENSION=require pip install --no-deps --no-build-isolation . \
    # Nothing can be written later, so make twistd cache its plugins now.
    && twistd --help > /dev/null \
    && pip uninstall -y wheel setuptools pip


FROM docker.io/library/debian:bookworm-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*

COPY --from=build /opt/fooproxy /opt/fooproxy
COPY contrib/container/fooproxy.toml /etc/fooproxy/fooproxy.toml
# A new volume takes over the owner.
RUN install -d -o 10001 -g 10001 /var/lib/fooproxy

ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="fooproxy" \
      org.opencontainers.image.description="A proxy for the Foo protocol that counts what passes and tells its operators" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"

ENV PATH=/opt/fooproxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    FOOPROXY_CONFIG=/etc/fooproxy/fooproxy.toml

# A number, so that Kubernetes can verify that the user is not root.
USER 10001:10001
WORKDIR /var/lib/fooproxy
VOLUME /var/lib/fooproxy
EXPOSE 8002 8088

STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["fooproxy", "--check-health"]
ENTRYPOINT ["fooproxy"]
