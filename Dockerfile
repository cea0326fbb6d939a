# sgwall as one static binary on an empty image.
#
#   docker build -t sgwall .
#   docker run --rm --cap-add NET_ADMIN --cap-add SYS_ADMIN \
#       --security-opt apparmor=unconfined --device /dev/net/tun sgwall demo
#
# As a sidecar it needs less: see docs/sidecar.md and deploy/.
#
# Behind a mirror: --build-arg REGISTRY=mirror.example/library, or
# --build-arg RUST=... for the whole name of the image to build in. That is
# any image with Rust 1.95 or later and a C linker.
# scripts/image makes the same image without a registry.
ARG REGISTRY=docker.io/library
ARG RUST=${REGISTRY}/rust:1.95-alpine

FROM ${RUST} AS build
WORKDIR /src
COPY . .
# The target is the builder's own, and named, so that the flag is for the
# program alone and not for the build scripts and macros of its dependencies.
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
    && RUSTFLAGS="-C target-feature=+crt-static" \
       cargo build --release --locked --target "$target" \
    && cp "target/$target/release/sgwall" /sgwall

FROM scratch
LABEL org.opencontainers.image.title="sgwall" \
      org.opencontainers.image.description="AWS security groups that filter real packets" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /sgwall /sgwall
COPY configs /configs
COPY LICENSE-MIT LICENSE-APACHE NOTICE /
# With the folder that the program is in, for `docker exec`, health checks and
# images built on this one.
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/
# No USER: Docker gives added capabilities to root alone, and under
# no-new-privileges a file can't give them to anybody else. The sidecar drops
# what it doesn't need once it is set up.
#
# A container that doesn't enforce (`sgwall pause`, `sgwall check`) turns this
# off: --no-healthcheck.
HEALTHCHECK --interval=5s --timeout=3s --start-period=15s --retries=2 \
    CMD ["/sgwall", "status", "--probe"]
ENTRYPOINT ["/sgwall"]
CMD ["--help"]
