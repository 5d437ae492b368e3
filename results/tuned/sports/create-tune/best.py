"""sports, create: trial 5 of 6, validation log_reciprocal_rank -7.099041 after 65 joint epochs.

What --mode=tune chose, on top of config.json beside this file. Without early
stopping, on all rows up to the test for as long:

  --config.split.validation=none --config.train.epochs=65
"""

from create_jax.config_file import of_study

CHOSEN = {
    "optim.lr": 0.0014852674800721055,
    "seq.dropout": 0.5811387064729627,
    "loss.w_global": 0.011645961981174081,
    "loss.w_bt": 0.1140642086496627,
    "align.bt.lambda": 0.061401949429128445,
    "align.stop_grad": "none",
    "warmup.epochs": 74,
}


def get_config():
    return of_study(__file__, CHOSEN)
