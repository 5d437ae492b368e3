#!/bin/sh
# One machine, all its devices: launch/local.sh --config=beauty
# Simulated devices on a CPU: DEVICES=8 launch/local.sh --config=...
set -eu
if [ -n "${DEVICES:-}" ]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="--xla_force_host_platform_device_count=$DEVICES ${XLA_FLAGS:-}"
fi
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m create_jax.main "$@"
