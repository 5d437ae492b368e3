#!/bin/sh
# Every run of results/, in the order of what it teaches. Stop it and start it again at
# any time: finished runs print their result, others continue. To make the numbers anew
# remove results/DATA first.
#
# A run is results/DATA/SYSTEM/seed-N. SYSTEM is the method and, after an @, the settings
# that differ from those of the method's main run: create@align=none.
#
#   results/run.sh beauty|sports|ml1m
set -eu
data=$1
here=results/$data
main() { python -m create_jax.main "$@"; }

# study METHOD TRIALS: settings by validation, at equal budgets for what is compared: the
# same number of trials, each at most as long as the config says. Those of sasrec and
# create, and bert4rec's on Beauty, are from before the default kept unseen targets and
# ranked all items.
study() {
  [ -f $here/$1-tune/best.py ] || main --config=$data:$1 --mode=tune --workdir=$here/$1-tune \
    --config.tune.trials=$2 $by
}

# best METHOD SETTING: what its study chose. For train.epochs, the epochs after which
# validation was best.
best() { sed -n "s/.*$2\"*[:=] *\([0-9.e-]*\).*/\1/p" $here/$1-tune/best.py | head -n 1; }

# fixed SYSTEM METHOD EPOCHS SEEDS ...: the best settings of a study, trained on all rows up
# to the test for so many epochs. Early stopping ends seeds at very different lengths.
fixed() {
  system=$1 config=$here/$2-tune/best.py epochs=$3 seeds=$4 && shift 4
  main --config=$config --config.split.validation=none --config.train.epochs=$epochs \
    $rules --config.seeds=$seeds --workdir=$here/$system/seed "$@"
}

# cut SYSTEM METHOD EPOCHS SEEDS ...: the same run when histories end at the cut.
cut() {
  cut=${1%%@*}@history=train && [ $1 = ${1%%@*} ] || cut=$cut,${1#*@}
  [ -f $here/$cut/seed-${4##*,}/result.json ] ||
    fixed "$@" --mode=evaluate --config.eval.history=train --save=$here/$cut/seed
}

all=0,1,2,3
# As all runs here were selected.
by="--config.eval.select_by=ndcg@10 --config.eval.select_mean=1"
rules="--config.eval.cold_items=keep_as_miss --config.eval.candidates=all"
case $data in  # the rank of SVD by validation: protocol.json
beauty) trials=6 rank=256 ;;
sports) trials=3 rank=128 ;;
ml1m) trials=3 rank=64 ;;
*) echo "found $data; expected beauty, sports or ml1m" >&2 && exit 2 ;;
esac

for method in random poprnd mostpop svd; do
  main --config=$data:$method --config.split.validation=none \
    $by --config.svd.ranks=$rank, --workdir=$here/$method/seed-0
done
study sasrec $trials
study create $trials
sasrec=$(best sasrec train.epochs) create=$(best create train.epochs)
without="--config.align.kind=none"

if [ $data = beauty ]; then  # By the protocol: stopped by validation, tested once.
  for method in sasrec create; do
    main --config=$here/$method-tune/best.py $rules \
      --config.seeds=$all --workdir=$here/$method@validation=by_time/seed
  done
  sasrec=$create  # the others are all as long as CREATE, the longer of the two
fi
same= none=$all
if [ $data = ml1m ]; then  # CREATE's study ends early: as long as SASRec, and like it
  none=0,
  fixed create@epochs=$create create $create $all
  create=$sasrec
  same="--config.optim.lr=$(best sasrec optim.lr)"
  same="$same --config.seq.dropout=$(best sasrec seq.dropout)"
fi
fixed sasrec sasrec $sasrec $all
fixed create create $create $all $same
fixed create@align=none create $create $none $same $without
if [ $data = beauty ]; then
  fixed create@align=infonce create $create $all --config.align.kind=infonce
  fixed create@warmup=0 create $create $all --config.warmup.epochs=0
  fixed create@warmup=50 create $create $all --config.warmup.epochs=50
  # SASRec on the item table that the graph warmed up, and no graph after that.
  fixed create@align=none,w_global=0 create $create $all $without --config.loss.w_global=0.0
fi
if [ $data != ml1m ]; then
  cut sasrec sasrec $sasrec $all
  cut create create $create $all
  cut create@align=none create $create $all $without
fi

study bert4rec $trials
fixed bert4rec bert4rec $(best bert4rec train.epochs) $all
for method in esasrec ultragcn lightgcn; do
  study $method 1
  fixed $method $method $(best $method train.epochs) 0,
done

# Other graph encoders; only MovieLens here has the ratings of a signed graph.
graphs="lightgcn hypergraph"
[ $data = ml1m ] && graphs="$graphs signed"
for graph in $graphs; do
  fixed create@graph=$graph create $create 0, $same --config.graph.encoder=$graph
done
# The order of the file inside a day shuffled.
fixed sasrec@ties=random sasrec $sasrec 0, --config.split.ties=random
fixed create@ties=random create $create 0, $same --config.split.ties=random

python -m create_jax.ranks $here  # a tenth of the bytes, and the same report
