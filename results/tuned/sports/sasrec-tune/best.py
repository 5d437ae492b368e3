"""sports, sasrec: trial 1 of 6, validation log_reciprocal_rank -7.178737 after 21 epochs.

What --mode=tune chose, on top of config.json beside this file. Without early
stopping, on all rows up to the test for as long:

  --config.split.validation=none --config.train.epochs=21
"""

from create_jax.config_file import of_study

CHOSEN = {
    "optim.lr": 0.0007836881129881295,
    "seq.dropout": 0.4601622467210791,
}


def get_config():
    return of_study(__file__, CHOSEN)
