"""One phase of training, ready to run: what the loop of `train.fit` builds."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from create_jax import build, feeds, optim, parallel, steps


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


def prepare(config, train) -> Prepared:
    """The only phase of a config (no warm-up) on the rows `train`."""
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


def repeat(prepared: Prepared) -> Callable:
    """() -> the losses of the first dispatch of an epoch, once more; waits for them."""
    batch = prepared.batch(prepared.feed.plan(0), 0)
    state = prepared.state

    def once():
        nonlocal state
        state, losses = prepared.run(state, batch, prepared.graph)
        return jax.block_until_ready(losses)

    return once
