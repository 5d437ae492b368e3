"""Amazon Beauty 2014, 5-core: 22,363 users, 12,101 items, 198,502 reviews.

python -m create_jax.main --config=beauty[:METHOD]
"""

from create_jax.configs import common


def get_config(method: str | None = None):
    config = common.get_config(method, dropout=0.5)
    config.data.name = "beauty"
    config.data.loader = "amazon"
    config.data.counts = (22363, 12101, 198502)
    config.seq.max_len = 50
    config.train.batch = 128
    return config
