"""sports, sasrec: trial 0 of 1, validation log_reciprocal_rank -7.151209 after 13 epochs.

What --mode=tune chose, on top of config.json beside this file. Without early
stopping, on all rows up to the test for as long:

  --config.split.validation=none --config.train.epochs=13
"""

from create_jax.config_file import of_study

CHOSEN = {
    "optim.lr": 0.0014852674800721055,
    "seq.dropout": 0.5811387064729627,
}


def get_config():
    return of_study(__file__, CHOSEN)
