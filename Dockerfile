# Releases and `make image` set this to the digest in .github/base/Dockerfile. Set it to your mirror if anonymous pulls are limited.
ARG PYTHON_IMAGE=python:3.13-slim

# Requirements by hash, then the package, compiled because the root file system is read-only at run time.
FROM ${PYTHON_IMAGE} AS build
COPY app/requirements.txt /tmp/
RUN python -m venv --without-pip /venv \
 && pip --python /venv/bin/python install --no-cache-dir --no-compile --only-binary=:all: --require-hashes -r /tmp/requirements.txt
# 27 of 69 MB are symbols that only a debugger needs. They stay if Debian's packages cannot be reached.
RUN (apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends binutils) >/dev/null \
 && find /venv -name '*.so*' -exec strip --strip-unneeded {} + || echo "binutils cannot be installed: the image is larger"
COPY app/forwarder /tmp/forwarder
RUN cp -r /tmp/forwarder "$(/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
 && /venv/bin/python -m compileall -q /venv

FROM ${PYTHON_IMAGE}
ARG VERSION=unknown
LABEL org.opencontainers.image.title="aks-audit" \
      org.opencontainers.image.description="Delivers the Kubernetes audit log of AKS from Azure Event Hubs to a security sensor's webhook" \
      org.opencontainers.image.source="https://github.com/aks-audit/aks-audit" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/site-packages/pip* /usr/local/lib/python3.*/ensurepip
COPY --from=build /venv /venv
ENV PATH="/venv/bin:$PATH" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 5000
ENTRYPOINT ["/venv/bin/python", "-m", "forwarder"]
