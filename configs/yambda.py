"""Yambda-50M likes: 8,283 users, 181,304 tracks, 881,456 likes, none filtered.

python -m create_jax.main --config=yambda[:METHOD]

Music is heard again: seen items stay in the ranking
(docs/protocol.md#candidates-and-seen-items).
"""

from create_jax.configs import common


def get_config(method: str | None = None):
    config = common.get_config(method)
    config.data.name = "yambda"
    config.data.loader = "yambda"
    config.data.counts = (8283, 181304, 881456)
    config.eval.filter_seen = False
    config.eval.batch = 64
    config.seq.max_len = 128
    return config
