"""Amazon Sports and Outdoors 2014, 5-core: 35,598 users, 18,357 items, 296,337 reviews.

python -m create_jax.main --config=sports[:METHOD]
"""

from create_jax.configs import common


def get_config(method: str | None = None):
    config = common.get_config(method, dropout=0.5)
    config.data.name = "sports"
    config.data.loader = "amazon"
    config.data.counts = (35598, 18357, 296337)
    config.seq.max_len = 50
    config.train.batch = 128
    return config
