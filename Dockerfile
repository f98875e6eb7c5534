# Two images from one file: `--target operator` and `--target node`. Plain instructions only, so that Docker's older builder can make them as well.
#
# The context is a staged directory, not the repository:
#   bin/nestling   the program
#   bin/kind       the kind command line
#   store.tar      node images to carry along, as Docker keeps them on disk (lab/src/node_store.rs makes it). May be an empty archive.

ARG OPERATOR_BASE=debian:trixie-slim
ARG NODE_BASE=debian:trixie-slim

FROM ${OPERATOR_BASE} AS operator
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nestling operator" \
      org.opencontainers.image.description="Turns KindCluster objects into kind clusters" \
      org.opencontainers.image.source="https://github.com/nestling-dev/nestling" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY bin/nestling /usr/local/bin/nestling
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/nestling"]
CMD ["operator"]

FROM ${NODE_BASE} AS node
# A base that has everything already is taken as it is; that is how the image is made without a network.
RUN if ! command -v dockerd >/dev/null; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends \
            ca-certificates docker-cli docker.io e2fsprogs iproute2 iptables kmod pigz procps util-linux xfsprogs zstd \
        && rm -rf /var/lib/apt/lists/*; \
    fi
# What changes seldom comes first, so that a change of the code moves one small layer.
COPY bin/kind /usr/local/bin/kind
ADD store.tar /opt/nestling/store/
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nestling node" \
      org.opencontainers.image.description="Runs one kind cluster inside of a pod" \
      org.opencontainers.image.source="https://github.com/nestling-dev/nestling" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY bin/nestling /usr/local/bin/nestling
ENTRYPOINT ["/usr/local/bin/nestling"]
CMD ["agent"]
