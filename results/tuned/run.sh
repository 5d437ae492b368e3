#!/bin/sh
# The second study: SASRec and CREATE on UltraGCN, each tuned by as many trials, selected
# by the rule of results/selection, and trained on all rows up to the test for as long as
# validation chose. On Beauty also CREATE on LightGCN, both CREATEs without their alignment,
# and that on UltraGCN with the alignment's gradient to other sides than validation chose.
# On Sports also CREATE without alignment; without any warm-up; with ten epochs of it, and
# without graph loss and alignment, two seeds each; and SASRec with the learning rate and
# dropout that CREATE's study chose, for as long as validation chose and as CREATE is
# trained. Some are ranked again with histories that end at the cut. Stop it and start it
# again at any time: finished runs print their result.
#
#   results/tuned/run.sh beauty|sports|ml1m [--config.data.path=FILE]
set -eu
data=$1 && shift
here=results/tuned/$data options=$*
[ $data = beauty ] && trials=12 || trials=6
main() { python -m create_jax.main "$@" $options; }

# tuned STUDY SYSTEM [SETTING]: four seeds of what the study chose, which comes first where
# it is not there yet. STUDY is a method, METHOD@graph=ENCODER, or sasrec@settings=create:
# the length alone is chosen, the rest is what CREATE's study chose.
tuned() {
  study=$here/$1-tune about=--config.tune.trials=$trials
  case $1 in
  *@graph=*) about="$about --config.graph.encoder=${1#*@graph=}" ;;
  *@settings=create)
    about="--config.tune.trials=1 $(sed -n \
      -e 's/ *"optim.lr": \(.*\),/--config.optim.lr=\1/p' \
      -e 's/ *"seq.dropout": \(.*\),/--config.seq.dropout=\1/p' $here/create-tune/best.py)" ;;
  esac
  [ -f $study/best.py ] ||
    main --config=$data:${1%@*} --mode=tune --workdir=$study $about
  # best.py says after how many epochs validation was best.
  epochs=$(sed -n 's/.*train.epochs=\([0-9]*\).*/\1/p' $study/best.py | head -n 1)
  main --config=$study/best.py --config.split.validation=none --config.train.epochs=$epochs \
    --config.seeds=0,1,2,3 --workdir=$here/$2/seed ${3-}
}

# cut STUDY SYSTEM [SETTING]: the same runs when histories end at the cut.
cut() {
  cut=$here/history=train/$2/seed
  [ -f $cut-3/result.json ] ||
    tuned $1 $2 "--mode=evaluate --config.eval.history=train --save=$cut ${3-}"
}

tuned sasrec sasrec
tuned create create
cut sasrec sasrec
cut create create
if [ $data = beauty ]; then
  tuned create create@align=none --config.align.kind=none
  cut create create@align=none --config.align.kind=none
  tuned create create@stop_grad=none --config.align.stop_grad=none
  tuned create create@stop_grad=global --config.align.stop_grad=global
  tuned create create@stop_grad=none,w_bt=0.2 \
    "--config.align.stop_grad=none --config.loss.w_bt=0.2"
  tuned create@graph=lightgcn create@graph=lightgcn
  tuned create@graph=lightgcn create@graph=lightgcn,align=none --config.align.kind=none
elif [ $data = sports ]; then
  tuned create create@align=none --config.align.kind=none
  tuned create create@w_global=0,align=none \
    "--config.loss.w_global=0.0 --config.align.kind=none --config.seeds=0,1"
  tuned create create@warmup=10 "--config.warmup.epochs=10 --config.seeds=0,1"
  tuned create create@warmup=0 --config.warmup.epochs=0
  tuned sasrec@settings=create sasrec@settings=create
  tuned sasrec@settings=create sasrec@settings=create,epochs=65 --config.train.epochs=65
fi
python -m create_jax.ranks $here  # a tenth of the bytes, and the same report
