"""ml1m, create: trial 1 of 3, validation ndcg@10 0.130028 after 13 joint epochs.

What --mode=tune chose, on top of config.json beside this file. Without early
stopping, on all rows up to the test for as long:

  --config.split.validation=none --config.train.epochs=13
"""

from create_jax.config_file import of_study

CHOSEN = {
    "optim.lr": 0.0007836881129881295,
    "seq.dropout": 0.4601622467210791,
    "loss.w_global": 0.010005268542378308,
    "loss.w_bt": 0.04024066464714611,
}


def get_config():
    return of_study(__file__, CHOSEN)
