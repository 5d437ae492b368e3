"""The optimizer: one per group of parameters, so that each group counts its steps.

The transformer is not trained in the warm-up of the graph. Its step count starts with
joint training, and so does Adam's bias correction, as in a run without warm-up.
"""

import optax


def make(*, lr: float, b1: float, b2: float, eps: float, clip: float):
    """Adam (every reference trains with it); `clip` > 0 bounds the global norm of a
    group's gradient."""
    adam = optax.adam(lr, b1=b1, b2=b2, eps=eps)
    return optax.chain(optax.clip_by_global_norm(clip), adam) if clip else adam


def init(tx: optax.GradientTransformation, params: dict) -> dict:
    return {group: tx.init(values) for group, values in params.items()}


def update(tx, grads: dict, opt_state: dict, params: dict, groups) -> tuple[dict, dict]:
    """One step of the named groups; the others keep parameters and state."""
    params, opt_state = dict(params), dict(opt_state)
    for group in groups:
        changes, opt_state[group] = tx.update(
            grads[group], opt_state[group], params[group]
        )
        params[group] = optax.apply_updates(params[group], changes)
    return params, opt_state
