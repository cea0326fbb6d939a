# sgwall as one static binary on an empty image.
#
#   docker build -t sgwall .
#   docker run --rm --cap-add NET_ADMIN --cap-add SYS_ADMIN \
#       --security-opt apparmor=unconfined --device /dev/net/tun sgwall demo
#
# RUST names the image to build in: any Debian with Rust 1.95 or later and gcc,
# from any mirror (--build-arg RUST=mirror.example/rust:1.95-bookworm).
# scripts/image makes the same image without a registry.
ARG RUST=docker.io/library/rust:1.95-bookworm

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
COPY --from=build /sgwall /sgwall
COPY configs /configs
COPY LICENSE-MIT LICENSE-APACHE NOTICE /
ENTRYPOINT ["/sgwall"]
CMD ["--help"]
