#!/bin/sh
# Every run of results/, in the order of what it teaches. Stop it and start it again at
# any time: finished runs print their result, others continue.
#
#   results/run.sh beauty [TRIALS] [SEEDS]      TRIALS of each tuned method
set -eu
data=$1 trials=${2:-10} seeds=${3:-0,1,2,3}
main() { python -m create_jax.main "$@"; }
runs=runs/$data

for method in random poprnd mostpop svd lightgcn ultragcn; do
  main --config=configs/$data.py:$method --workdir=$runs/$method
done
# Equal budgets: the same number of trials, each at most as long as the config says.
for method in sasrec bert4rec create; do
  main --config=configs/$data.py:$method --mode=tune --workdir=$runs/$method-tune \
    --config.tune.trials=$trials
  main --config=$runs/$method-tune/best.py --config.seeds=$seeds --workdir=$runs/$method
done
main --config=configs/$data.py:esasrec --workdir=$runs/esasrec
best=$runs/create-tune/best.py
main --config=$best --config.graph.encoder=lightgcn --workdir=$runs/create-lightgcn
main --config=$best --config.graph.encoder=hypergraph --workdir=$runs/create-hypergraph
