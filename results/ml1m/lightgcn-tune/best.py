"""ml1m, lightgcn: trial 0 of 1, validation ndcg@10 0.029477 after 6 epochs.

What --mode=tune chose, on top of config.json beside this file. Without early
stopping, on all rows up to the test for as long:

  --config.split.validation=none --config.train.epochs=6
"""

from create_jax.config_file import of_study

CHOSEN = {
    "optim.lr": 0.001,
    "seq.dropout": 0.2,
}


def get_config():
    return of_study(__file__, CHOSEN)
