"""How often `create_jax.paired` sees a difference where there is none.

python -m benchmarks.null_differences

Gaps of 300 users in the runs of some seeds are drawn 4,000 times, of mean zero. A gap
is a part of the user, a part of the run, and noise of twice the user's deviation.
`share` is what the runs have of the variance of the mean. The nominal levels are 5% and
0.1%.
"""

import numpy as np

from create_jax.paired import difference
from create_jax.report import markdown_table

USERS, DRAWS, NOISE = 300, 4000, 2.0


def seen(seeds: int, share: float, rng) -> list[str]:
    """The percent of draws with a p below each level."""
    users = (1 + NOISE**2 / seeds) / USERS  # variance of the mean without the runs
    deviation = np.sqrt(seeds * users * share / (1 - share))
    found = []
    for _ in range(DRAWS):
        gaps = rng.normal(0, 1, (USERS, 1)) + rng.normal(0, deviation, seeds)
        gaps += rng.normal(0, NOISE, (USERS, seeds))
        found.append(difference(gaps, np.zeros_like(gaps), same_seeds=True).p)
    return [f"{100 * np.mean(np.array(found) < level):.2f}" for level in (0.05, 0.001)]


def main() -> None:
    rng = np.random.default_rng(0)
    rows = [
        [seeds, share, *seen(seeds, share, rng)]
        for seeds in (2, 4)
        for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    print(markdown_table(["seeds", "share", "5%", "0.1%"], rows))


if __name__ == "__main__":
    main()
