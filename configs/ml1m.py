"""MovieLens 1M: 6,040 users, 3,706 items, 1,000,209 ratings, none filtered.

python -m create_jax.main --config=ml1m[:METHOD]
"""

from create_jax.configs import common


def get_config(method: str | None = None):
    config = common.get_config(method, dropout=0.2)
    config.data.name = "ml1m"
    config.data.loader = "movielens"
    config.data.counts = (6040, 3706, 1000209)
    config.seq.max_len = 200
    config.train.batch = 128
    if method == "bert4rec":  # it learns from a fifth of the items: more steps an epoch
        config.train.batch = 32
    return config
