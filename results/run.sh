#!/bin/sh
# Every run of results/, in the order of what it teaches. Stop it and start it again at
# any time: finished runs print their result, others continue. To make the numbers anew
# remove results/DATA first.
#
#   results/run.sh beauty [TRIALS] [SEEDS]      TRIALS of each tuned method
set -eu
data=$1 trials=${2:-6} seeds=${3:-0,1,2,3}
here=results/$data
main() { python -m create_jax.main "$@"; }

for method in random poprnd mostpop svd ultragcn lightgcn; do
  main --config=configs/$data.py:$method --workdir=$here/$method
done

# Equal budgets: the same number of trials, each at most as long as the config says.
tuned() {
  main --config=configs/$data.py:$1 --mode=tune --workdir=$here/$1-tune \
    --config.tune.trials=$trials
  main --config=$here/$1-tune/best.py --config.seeds=$seeds --workdir=$here/$1
}
tuned sasrec
tuned create
tuned bert4rec
main --config=configs/$data.py:esasrec --workdir=$here/esasrec

# Other graph encoders, and the order of the file inside a day shuffled.
best=$here/create-tune/best.py
for graph in lightgcn hypergraph; do
  main --config=$best --config.graph.encoder=$graph --workdir=$here/create-$graph
done
for method in sasrec create; do
  main --config=$here/$method-tune/best.py --config.split.ties=random \
    --workdir=$here/ties-$method
done

[ $data = beauty ] || exit 0
# Without early stopping, which ends seeds at very different lengths: as many joint epochs
# for all as validation chose for CREATE's best trial.
long() {
  name=$1 method=$2 && shift 2
  main --config=$here/$method-tune/best.py --config.split.validation=none \
    --config.train.epochs=41 --config.seeds=$seeds --workdir=$here/long-$name "$@"
}
long sasrec sasrec
long create create
long none create --config.align.kind=none
long infonce create --config.align.kind=infonce
long warmup-0 create --config.warmup.epochs=0
long warmup-50 create --config.warmup.epochs=50
