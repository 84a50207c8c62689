#!/usr/bin/env bash
# Writes base.lock and torch.lock anew from pyproject.toml, and what is measured beside Offbeat from its own list. torch
# and the CUDA libraries it brings stand in a file of their own, so that `make TORCH=cpu` can leave them out.
set -euo pipefail
cd "$(dirname "$0")/.."
all=$(mktemp)
trap 'rm -f "$all"' EXIT
uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --all-extras --group dev \
    --generate-hashes --no-header --no-annotate --default-index https://pypi.org/simple pyproject.toml -o "$all" "$@"
awk -v torch=requirements/torch.lock -v base=requirements/base.lock '
    BEGIN { printf "" > torch; printf "" > base }
    /^[a-z]/ { file = ($0 ~ /^(torch|triton|nvidia-|cuda-)/) ? torch : base }
    { print > file }' "$all"
# Bytewax has no wheel for an older glibc.
uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_31 --generate-hashes --no-header \
    --no-annotate --default-index https://pypi.org/simple benchmarks/peers/requirements.in \
    -o benchmarks/peers/requirements.lock "$@"
