"""Amazon Office Products 2014, 5-core: 4,905 users, 2,420 items, 53,258 reviews.

python -m create_jax.main --config=office[:METHOD]
"""

from create_jax.configs import common


def get_config(method: str | None = None):
    config = common.get_config(method, dropout=0.5)
    config.data.name = "office"
    config.data.loader = "amazon"
    config.data.counts = (4905, 2420, 53258)
    config.seq.max_len = 50
    config.train.batch = 128
    return config
