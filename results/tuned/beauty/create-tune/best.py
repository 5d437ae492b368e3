"""beauty, create: trial 9 of 12, validation log_reciprocal_rank -7.021317 after 26 joint epochs.

What --mode=tune chose, on top of config.json beside this file. Without early
stopping, on all rows up to the test for as long:

  --config.split.validation=none --config.train.epochs=26
"""

from create_jax.config_file import of_study

CHOSEN = {
    "optim.lr": 0.001588865306082729,
    "seq.dropout": 0.5093997852144785,
    "loss.w_global": 0.018164238448159238,
    "loss.w_bt": 0.7946599483713148,
    "align.bt.lambda": 0.006207643477141283,
    "align.stop_grad": "local",
    "warmup.epochs": 14,
}


def get_config():
    return of_study(__file__, CHOSEN)
