"""beauty, sasrec: trial 9 of 12, validation log_reciprocal_rank -7.045499 after 24 epochs.

What --mode=tune chose, on top of config.json beside this file. Without early
stopping, on all rows up to the test for as long:

  --config.split.validation=none --config.train.epochs=24
"""

from create_jax.config_file import of_study

CHOSEN = {
    "optim.lr": 0.0025332892688167976,
    "seq.dropout": 0.5662668489740742,
}


def get_config():
    return of_study(__file__, CHOSEN)
