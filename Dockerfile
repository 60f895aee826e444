# The image of opsward: one binary, root certificates, a user without rights.
#
#   docker build -t opsward .
#
# Another base, or another place to build (a mirror, a newer compiler):
#   docker build -t opsward --build-arg BASE=debian:bookworm-slim \
#       --build-arg BUILDER=rust:1.95-slim-bookworm .
#
# Where no registry is in reach: any base with glibc 2.36 or newer that is there
# already, and a binary built outside (cargo build --release):
#   docker build -t opsward --target prebuilt --build-arg BASE=my-base .
#
# The stage `prebuilt` stands before `build`, so that builders without BuildKit,
# which build every stage up to their target, never ask for the compiler.
ARG BASE=debian:bookworm-slim
ARG BUILDER=rust:1.95-slim-bookworm

FROM ${BASE} AS base
# Peers are asked over TLS, checked by the system's roots.
RUN test -s /etc/ssl/certs/ca-certificates.crt || { \
        apt-get update \
        && apt-get install -y --no-install-recommends ca-certificates \
        && rm -rf /var/lib/apt/lists/*; \
    }
# A number without an account: nothing on the host or in the node is its.
USER 65532:65532
# 1992: the sweep, for peers. 9464: metrics and health, for the operator.
EXPOSE 1992 9464
# Asks the daemon's own /healthz: whether it lives, not whether the node's
# database does.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["opsward", "healthcheck"]
ENTRYPOINT ["opsward"]
CMD ["run"]

FROM base AS prebuilt
ARG BINARY=target/release/opsward
COPY ${BINARY} /usr/local/bin/opsward

FROM ${BUILDER} AS build
WORKDIR /src
RUN command -v cc >/dev/null || { \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev; \
    }
COPY . .
RUN cargo build --release --locked --bin opsward

FROM base AS opsward
COPY --from=build /src/target/release/opsward /usr/local/bin/opsward
