#!/bin/sh
# SASRec of the first study, trained for as many joint epochs as CREATE, and ranked again
# with histories that end at the cut. Stop it and start it again at any time.
#
#   results/longer/run.sh sports [--config.data.path=FILE]
set -eu
data=$1 && shift
[ $data = sports ] || { echo "found $data; expected sports" >&2 && exit 2; }
here=results/longer/$data run=sasrec@epochs=32/seed
main() {
  python -m create_jax.main --config=results/$data/sasrec-tune/best.py \
    --config.split.validation=none --config.train.epochs=32 \
    --config.eval.cold_items=keep_as_miss --config.eval.candidates=all \
    --config.seeds=0,1,2,3 --workdir=$here/$run "$@"
}

main "$@"
[ -f $here/history=train/$run-3/result.json ] ||
  main --mode=evaluate --config.eval.history=train --save=$here/history=train/$run "$@"
python -m create_jax.ranks $here  # a tenth of the bytes, and the same report
