"""MovieTweetings 100K (inside the package, MIT): a minute or two on a laptop's CPU.

python -m create_jax.main --config=quickstart
"""

from create_jax.configs import common


def get_config(method: str | None = None):
    config = common.get_config(method)
    config.data.name = "movietweetings"
    config.data.loader = "movietweetings"
    config.data.k_core = 5
    config.data.counts = (16554, 10506, 100000)
    config.seq.max_len = 50
    config.split.validation = "none"  # a fixed number of epochs, to be quick
    config.train.epochs = 20
    if config.method.startswith("create"):
        config.warmup.epochs = 5
    config.graph.signed.liked_from = 8.0  # of 10
    config.compare = ("sasrec", "mostpop")
    config.example = True
    return config
