"""sports, bert4rec: trial 2 of 3, validation ndcg@10 0.013803 after 29 epochs.

What --mode=tune chose, on top of config.json beside this file. Without early
stopping, on all rows up to the test for as long:

  --config.split.validation=none --config.train.epochs=29
"""

from create_jax.config_file import of_study

CHOSEN = {
    "optim.lr": 0.0008186837248702803,
    "seq.dropout": 0.11296311591394567,
}


def get_config():
    return of_study(__file__, CHOSEN)
