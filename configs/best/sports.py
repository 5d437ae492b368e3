"""The best of what was tried on Sports: SASRec, of three trials the defaults.

Trained on all rows up to the test, four seeds; how it was chosen: results/README.md.

python -m create_jax.main --config=configs/best/sports.py --workdir=runs/best/sports
"""

from create_jax.configs import sports


def get_config():
    config = sports.get_config("sasrec")
    config.train.epochs = 15
    config.split.validation = "none"
    config.seeds = (0, 1, 2, 3)
    return config
