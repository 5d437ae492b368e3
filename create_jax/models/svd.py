"""PureSVD (Cremonesi et al. 2010) and EigenRec (Nikolakopoulos et al. 2019)."""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg


def item_factors(
    users, items, n_users: int, n_rows: int, rank: int, power: float = 1.0
):
    """Right singular vectors V [n_rows, rank] of the binary matrix R, largest first.

    Args:
      users, items: [E] distinct pairs.
      rank: of the truncated decomposition, below both sides of R.
      power: columns are scaled by count^((p - 1) / 2) before; 1 = PureSVD, below 1
        popular items weigh less (EigenRec).
    """
    ones = np.ones(len(users))
    matrix = scipy.sparse.csr_matrix((ones, (users, items)), shape=(n_users, n_rows))
    counts = np.bincount(items, minlength=n_rows)
    scale = np.where(counts > 0, np.maximum(counts, 1) ** ((power - 1) / 2), 0.0)
    start = np.random.default_rng(0).normal(size=min(matrix.shape))  # for repeatability
    _, values, right = scipy.sparse.linalg.svds(
        matrix @ scipy.sparse.diags_array(scale), k=rank, v0=start
    )
    return np.ascontiguousarray(right[np.argsort(-values)].T, dtype=np.float32)


def user_vectors(users, items, n_users: int, factors: np.ndarray) -> np.ndarray:
    """r_u V [U, rank] of the binary rows r_u; the score of item i is r_u V V_i."""
    ones = np.ones(len(users), np.float32)
    shape = (n_users, len(factors))
    return scipy.sparse.csr_matrix((ones, (users, items)), shape=shape) @ factors
