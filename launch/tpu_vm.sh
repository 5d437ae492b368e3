#!/bin/bash
# A slice of Cloud TPU hosts, made if there is none, all of them started at once, and made
# anew for as long as spot slices are taken away. Needs gcloud and this checkout:
#
#   TPU=create ZONE=us-east5-b TYPE=v6e-16 VERSION=v2-alpha-tpuv6e \
#     PREPARE='gcloud storage cp gs://bucket/reviews_Beauty_5.json.gz .' \
#     launch/tpu_vm.sh --config=beauty --config.data.path=reviews_Beauty_5.json.gz \
#     --workdir=gs://bucket/runs/beauty
#
# PREPARE runs on each host first. SPOT=0 asks for a slice that nobody takes away.
# CACHE=gs://bucket/cache keeps compiled programs. The slice stays when the run has ended:
#   gcloud compute tpus tpu-vm delete create --zone=us-east5-b
set -u
: "${TPU:?a name for the slice}" "${ZONE:?its zone}" "${TYPE:?as v6e-16}"
: "${VERSION:?of its software, as v2-alpha-tpuv6e}"
cd "$(dirname "$0")/.." || exit 1

tpu() {
  verb=$1
  shift
  gcloud compute tpus tpu-vm "$verb" "$@" --zone="$ZONE" --quiet
}

spot=(--spot)
[ "${SPOT:-1}" != 0 ] || spot=()
pause=${PAUSE:-60} # seconds
# What Google says where none is free, or where it has a fault of its own.
later='capacity|exhausted|stock|unavailable|internal|try again|deadline|timed? ?out'
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
"${PYTHON:-python}" -m pip wheel --quiet --no-deps --wheel-dir="$made" . || exit 1
wheel=$(basename "$made"/*.whl)

# The images have an old Python.
steps=(
  "${PREPARE:-true}"
  "python3 -m pip install -q uv"
  "{ [ -d venv ] || python3 -m uv venv -q --python 3.12 venv; }"
  "python3 -m uv pip install -q --python=venv --reinstall-package=create_jax \
'./${wheel}[gcs,tpu]'"
  "${CACHE:+export JAX_COMPILATION_CACHE_DIR=$CACHE && }exec venv/bin/python -m \
create_jax.main --distributed$(printf ' %q' "$@")"
)
command=$(printf ' && %s' "${steps[@]}")

while true; do
  state=$(tpu describe "$TPU" --format='value(state)' 2>/dev/null)
  case $state in
    READY)
      # On all hosts: JAX on one of them waits for the others without end (jax issue
      # 22436).
      tpu scp "$made/$wheel" "$TPU:" --worker=all &&
        tpu ssh "$TPU" --worker=all --command="${command# && }"
      code=$?
      [ "$code" -ne 0 ] || exit 0
      sleep "$pause" # a slice that was taken away looks well for a moment
      state=$(tpu describe "$TPU" --format='value(state)' 2>/dev/null)
      if [ "$state" = READY ] && [ "$code" -ne 143 ]; then
        exit "$code" # the program's own matter: another slice would not help
      fi
      ;;
    CREATING | STARTING | RESTARTING | REPAIRING)
      sleep "$pause"
      ;;
    *) # none, or PREEMPTED, TERMINATED, STOPPED
      [ -z "$state" ] || tpu delete "$TPU"
      tpu create "$TPU" --accelerator-type="$TYPE" --version="$VERSION" "${spot[@]}" 2>&1 |
        tee "$made/said" >&2
      code=${PIPESTATUS[0]}
      if [ "$code" -ne 0 ]; then
        grep -qiE "$later" "$made/said" || exit "$code" # a mistake, and no better later
        sleep "$pause"
      fi
      ;;
  esac
done
