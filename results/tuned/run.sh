#!/bin/sh
# The second study: SASRec, CREATE on UltraGCN and CREATE on LightGCN, each tuned by as
# many trials, selected by the rule of results/selection, and trained on all rows up to
# the test for as long as validation chose; and both CREATEs so without their alignment.
# Stop it and start it again at any time: finished runs print their result.
#
#   results/tuned/run.sh beauty|sports|ml1m [--config.data.path=FILE]
set -eu
data=$1 && shift
here=results/tuned/$data options=$*
[ $data = beauty ] && trials=12 || trials=6
main() { python -m create_jax.main "$@" $options; }

# tuned SYSTEM METHOD ALIGNMENT SETTINGS ...: ALIGNMENT names the run without it, if any.
tuned() {
  system=$1 method=$2 without=$3 && shift 3
  study=$here/$system-tune
  [ -f $study/best.py ] || main --config=$data:$method --mode=tune --workdir=$study \
    --config.tune.trials=$trials "$@"
  # best.py says after how many epochs validation was best.
  epochs=$(sed -n 's/.*train.epochs=\([0-9]*\).*/\1/p' $study/best.py | head -n 1)
  fixed="--config=$study/best.py --config.split.validation=none --config.train.epochs=$epochs"
  fixed="$fixed --config.seeds=0,1,2,3"
  main $fixed --workdir=$here/$system/seed
  [ -z $without ] || main $fixed --config.align.kind=none --workdir=$here/$without/seed
}

tuned sasrec sasrec ""
tuned create create create@align=none
tuned create@graph=lightgcn create create@graph=lightgcn,align=none \
  --config.graph.encoder=lightgcn
python -m create_jax.ranks $here  # a tenth of the bytes, and the same report
