"""Amazon Clothing 2014, 5-core: 39,387 users, 23,033 items, 278,677 reviews.

python -m create_jax.main --config=clothing[:METHOD]
"""

from create_jax.configs import common


def get_config(method: str | None = None):
    config = common.get_config(method, dropout=0.5)
    config.data.name = "clothing"
    config.data.loader = "amazon"
    config.data.counts = (39387, 23033, 278677)
    config.seq.max_len = 50
    config.train.batch = 128
    return config
