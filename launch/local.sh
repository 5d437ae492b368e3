#!/bin/bash
# One machine, all its devices: launch/local.sh --config=beauty
# It works in the checkout: relative paths begin there.
# Simulated devices on a CPU: DEVICES=8 launch/local.sh --config=...
# Processes joined as on a cluster, each with so many simulated devices:
#   PROCESSES=2 DEVICES=4 launch/local.sh --config=... --workdir=...
set -u
if [ -n "${DEVICES:-}" ]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="--xla_force_host_platform_device_count=$DEVICES ${XLA_FLAGS:-}"
fi
cd "$(dirname "$0")/.." || exit 1
program=("${PYTHON:-python}" -m create_jax.main)
if [ "${PROCESSES:-1}" -eq 1 ]; then
  exec "${program[@]}" "$@"
fi

export CREATE_JAX_COORDINATOR="localhost:${PORT:-$((20000 + $$ % 10000))}"
export CREATE_JAX_PROCESSES=$PROCESSES
asked=0 running=()
trap 'asked=1' TERM INT HUP # passed on below, when all that began are known
set -m # each in a process group of its own: a signal to this one's must not come twice
for ((rank = 0; rank < PROCESSES && !asked; rank++)); do
  CREATE_JAX_PROCESS=$rank "${program[@]}" "$@" &
  running+=($!)
done
trap 'kill -TERM "${running[@]}" 2>/dev/null' TERM INT HUP
[ "$asked" -eq 0 ] || kill -TERM "${running[@]}" 2>/dev/null
# The code of the first that fails. The others would wait for it, unless they all leave
# together (143), so they are ended.
code=0
while [ "${#running[@]}" -gt 0 ]; do
  # Until one ends, or a signal comes. One that has ended before is no job any more,
  # and bash has its code still.
  wait -n "${running[@]}" 2>/dev/null
  for place in "${!running[@]}"; do
    kill -0 "${running[place]}" 2>/dev/null && continue
    wait "${running[place]}"
    status=$?
    unset "running[place]"
    if [ "$code" -eq 0 ] && [ "$status" -ne 0 ]; then
      code=$status
      [ "$code" -eq 143 ] || kill -TERM "${running[@]}" 2>/dev/null
    fi
  done
done
exit "$code"
