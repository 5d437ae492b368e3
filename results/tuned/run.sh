#!/bin/sh
# The second study: SASRec and CREATE on UltraGCN, each tuned by as many trials, selected
# by the rule of results/selection, and trained on all rows up to the test for as long as
# validation chose; and CREATE so without its alignment. Stop it and start it again at
# any time: finished runs print their result.
#
#   results/tuned/run.sh beauty|sports|ml1m [--config.data.path=FILE]
set -eu
data=$1 && shift
here=results/tuned/$data options=$*
[ $data = beauty ] && trials=12 || trials=6
main() { python -m create_jax.main "$@" $options; }

# tuned METHOD WITHOUT: WITHOUT names the run without alignment, if any.
tuned() {
  method=$1 without=$2 study=$here/$1-tune
  [ -f $study/best.py ] || main --config=$data:$method --mode=tune --workdir=$study \
    --config.tune.trials=$trials
  # best.py says after how many epochs validation was best.
  epochs=$(sed -n 's/.*train.epochs=\([0-9]*\).*/\1/p' $study/best.py | head -n 1)
  fixed="--config=$study/best.py --config.split.validation=none --config.train.epochs=$epochs"
  fixed="$fixed --config.seeds=0,1,2,3"
  main $fixed --workdir=$here/$method/seed
  [ -z $without ] || main $fixed --config.align.kind=none --workdir=$here/$without/seed
}

tuned sasrec ""
tuned create create@align=none
python -m create_jax.ranks $here  # a tenth of the bytes, and the same report
