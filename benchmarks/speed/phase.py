"""One phase of training, ready to run: what the loop of `train.fit` builds; and the
ranking of the test queries."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from create_jax import build, evaluate, feeds, optim, parallel, protocol, steps


class Prepared(NamedTuple):
    """run: (state, batch, graph) -> (state, losses), compiled at its first call.
    pairs: of the graph, or None."""

    model: object
    feed: feeds.Feed
    pairs: object
    graph: object
    mesh: object
    state: steps.TrainState
    run: Callable

    def batch(self, plan, chunk: int):
        """A dispatch's batch, on the devices."""
        batch = self.feed.batch(plan, chunk)
        return parallel.place(self.mesh, batch, steps.batch_specs(batch))


def prepare(config, train=None) -> Prepared:
    """The only phase of a config (no warm-up) on the rows `train`; None = all rows of
    its log before the test."""
    if train is None:
        train = protocol.make_split(config, protocol.load(config)).refit
    build.check(config)
    mesh = parallel.make_mesh()
    model = build.make_model(config, train.n_users, train.n_items)
    (phase,) = build.make_phases(config)
    rows, pairs, graph = feeds.make_graph(config, model, train, mesh.size)
    feed = feeds.Feed(config, model, phase, train, rows, pairs, mesh.size)
    graph = parallel.place(mesh, graph, steps.graph_specs(graph))
    tx = optim.make(**config.optim.to_dict())
    state = parallel.place(mesh, steps.init(model, tx, config.seed))
    example = feed.batch(feed.plan(0), 0)
    whole = steps.compile_phase(model, phase, tx, config.seed, mesh, example, graph)
    wish = parallel.wishes(mesh)(0)

    def run(state, batch, graph):
        return whole(state, batch, graph, wish)[:2]

    return Prepared(model, feed, pairs, graph, mesh, state, run)


def ranking(config, **rules) -> Callable:
    """() -> the Ranking of a config's test queries by parameters as they start.

    Args:
      rules: of `evaluate.Evaluator`, in the place of the config's.
    """
    split = protocol.make_split(config, protocol.load(config))
    mesh = parallel.make_mesh()
    model = build.make_model(config, split.refit.n_users, split.refit.n_items)
    score = evaluate.model_scores(model, mesh, by_graph=False)
    evaluator = evaluate.make_evaluator(
        config, split.test["last"], score, mesh, model.mask, **rules
    )
    return partial(evaluator.run, parallel.place(mesh, model.init(0)), ())


def repeat(prepared: Prepared) -> Callable:
    """() -> the losses of the first dispatch of an epoch, once more; waits for them."""
    batch = prepared.batch(prepared.feed.plan(0), 0)
    state = prepared.state

    def once():
        nonlocal state
        state, losses = prepared.run(state, batch, prepared.graph)
        return jax.block_until_ready(losses)

    return once
