"""beauty, create: trial 0 of 12, validation log_reciprocal_rank -7.027481 after 46 joint epochs.

What --mode=tune chose, on top of config.json beside this file. Without early
stopping, on all rows up to the test for as long:

  --config.split.validation=none --config.train.epochs=46
"""

from create_jax.config_file import of_study

CHOSEN = {
    "optim.lr": 0.001,
    "seq.dropout": 0.5,
    "loss.w_global": 0.1,
    "loss.w_bt": 0.2,
    "align.bt.lambda": 0.05,
    "align.stop_grad": "none",
    "align.user_source": "propagated",
    "graph.lightgcn.layers": 2,
    "warmup.epochs": 10,
}


def get_config():
    return of_study(__file__, CHOSEN)
