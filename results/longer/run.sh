#!/bin/sh
# SASRec of the first study, trained for as many joint epochs as CREATE. Stop it and start
# it again at any time.
#
#   results/longer/run.sh sports [--config.data.path=FILE]
set -eu
data=$1 && shift
[ $data = sports ] || { echo "found $data; expected sports" >&2 && exit 2; }
python -m create_jax.main --config=results/$data/sasrec-tune/best.py \
  --config.split.validation=none --config.train.epochs=32 \
  --config.eval.cold_items=keep_as_miss --config.eval.candidates=all \
  --config.seeds=0,1,2,3 --workdir=results/longer/$data/sasrec@epochs=32/seed "$@"
python -m create_jax.ranks results/longer/$data
