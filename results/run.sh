#!/bin/sh
# Every run of results/, in the order of what it teaches. Stop it and start it again at
# any time: finished runs print their result, others continue. To make the numbers anew
# remove results/DATA first.
#
#   results/run.sh beauty|sports|ml1m
set -eu
data=$1
here=results/$data
main() { python -m create_jax.main "$@"; }

# study METHOD TRIALS: settings by validation, at equal budgets for what is compared: the
# same number of trials, each at most as long as the config says.
study() {
  main --config=configs/$data.py:$1 --mode=tune --workdir=$here/$1-tune \
    --config.tune.trials=$2
}

# fixed NAME METHOD EPOCHS SEEDS ...: the best settings of a study, trained on all rows up
# to the test for so many epochs. Early stopping ends seeds at very different lengths.
fixed() {
  name=$1 best=$here/$2-tune/best.py epochs=$3 seeds=$4 && shift 4
  main --config=$best --config.split.validation=none --config.train.epochs=$epochs \
    --config.seeds=$seeds --workdir=$here/$name "$@"
}

# chosen METHOD: the epochs after which validation was best in the study. epochs METHOD:
# of the fixed runs; on Beauty all are as long as CREATE's.
chosen() { sed -n 's/.*config.train.epochs=//p' $here/$1-tune/best.py; }
epochs() { [ $data = beauty ] && chosen create || chosen $1; }

all=0,1,2,3
if [ $data = beauty ]; then
  # By the protocol: stopped by validation, refitted, tested once.
  for method in random poprnd mostpop svd ultragcn lightgcn; do
    main --config=configs/$data.py:$method --workdir=$here/$method
  done
  for method in sasrec create; do
    study $method 6
    main --config=$here/$method-tune/best.py --config.seeds=$all --workdir=$here/$method
  done
  fixed long-sasrec sasrec $(epochs sasrec) $all
  fixed long-create create $(epochs create) $all
  fixed long-none create $(epochs create) $all --config.align.kind=none
  fixed long-infonce create $(epochs create) $all --config.align.kind=infonce
  fixed long-warmup-0 create $(epochs create) $all --config.warmup.epochs=0
  fixed long-warmup-50 create $(epochs create) $all --config.warmup.epochs=50
  # SASRec on the item table that the graph warmed up, and no graph after that.
  fixed long-init create $(epochs create) $all --config.align.kind=none --config.loss.w_global=0.0
  long=long- trials=6
else
  [ $data = sports ] && rank=128 || rank=64  # by validation: protocol.json
  for method in random poprnd mostpop svd; do
    main --config=configs/$data.py:$method --config.split.validation=none \
      --config.svd.ranks=$rank, --workdir=$here/$method
  done
  long='' trials=3
  for method in sasrec create; do
    study $method $trials
    fixed $method $method $(epochs $method) $all
  done
  fixed none create $(chosen create) $all --config.align.kind=none
fi

study bert4rec $trials
fixed ${long}bert4rec bert4rec $(chosen bert4rec) $all
for method in esasrec ultragcn lightgcn; do
  study $method 1
  fixed ${long}$method $method $(chosen $method) 0,
done

# Other graph encoders, and the order of the file inside a day shuffled.
for graph in lightgcn signed hypergraph; do
  fixed ${long}create-$graph create $(chosen create) 0, --config.graph.encoder=$graph
done
for method in sasrec create; do
  fixed ${long}ties-$method $method $(epochs $method) 0, --config.split.ties=random
done

# The same models when a user's history ends at the cut, as the protocol finding has it.
cut() {
  name=$1 method=$2 && shift 2
  fixed $long$name $method $(epochs $method) $all --mode=evaluate \
    --config.eval.history=train --save=$here/cut-$name "$@"
}
cut sasrec sasrec
cut create create
cut none create --config.align.kind=none
if [ $data = beauty ]; then
  cut warmup-0 create --config.warmup.epochs=0
  cut init create --config.align.kind=none --config.loss.w_global=0.0
fi
