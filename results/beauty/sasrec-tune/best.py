"""beauty, sasrec: trial 3 of 6, validation ndcg@10 0.028720 after 27 epochs.

What --mode=tune chose, on top of config.json beside this file. Without early
stopping, on all rows up to the test for as long:

  --config.split.validation=none --config.train.epochs=27
"""

from create_jax.config_file import of_study

CHOSEN = {
    "optim.lr": 0.001066397595817034,
    "seq.dropout": 0.4540739113090524,
}


def get_config():
    return of_study(__file__, CHOSEN)
