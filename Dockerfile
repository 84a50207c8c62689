# One image for all of Offbeat's processes. The first stage installs the locked dependencies, the second has no compiler,
# no pip cache and no root.
FROM python:3.11.13-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
RUN python -m venv /opt/offbeat
WORKDIR /source
# Dependencies first: they change less often than the code.
COPY requirements/base.lock requirements/torch.lock requirements/
RUN /opt/offbeat/bin/pip install --no-deps --require-hashes -r requirements/base.lock \
 && /opt/offbeat/bin/pip install --no-deps --index-url "$TORCH_INDEX" \
        "$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements/torch.lock)"
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY pipeline pipeline
COPY detectors detectors
COPY models models
COPY features features
RUN /opt/offbeat/bin/pip install --no-deps --no-build-isolation .

FROM python:3.11.13-slim-bookworm
LABEL org.opencontainers.image.title="Offbeat" org.opencontainers.image.licenses="Apache-2.0"
# Named volumes take over the owner of the folder they are mounted on.
RUN groupadd --system --gid 10001 offbeat \
 && useradd --system --uid 10001 --gid offbeat --home-dir /var/lib/offbeat --shell /usr/sbin/nologin offbeat \
 && install -d -o offbeat -g offbeat /var/lib/offbeat /var/lib/offbeat/state /var/lib/offbeat/models
COPY --from=build /opt/offbeat /opt/offbeat
# Compiled kernels are kept with the state, for the file system is read-only otherwise.
ENV PATH=/opt/offbeat/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/var/lib/offbeat/state/numba
USER 10001:10001
WORKDIR /var/lib/offbeat
ENTRYPOINT ["offbeat"]
CMD ["--help"]
