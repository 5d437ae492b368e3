"""BERT4Rec and eSASRec against a second writing; masked batches; encoders of others."""

import json
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from jax.sharding import AxisType
from test_models import in_float64, make_params, numpy_attention, numpy_norm

from create_jax import build, evaluate, experiment, feeds, losses
from create_jax.configs import table
from create_jax.data import packing
from create_jax.data.graph import EdgeBatch
from create_jax.data.interactions import Interactions
from create_jax.data.splits import Holdout
from create_jax.errors import InputError
from create_jax.models import bert4rec, transformer
from create_jax.models.create import Create

ITEMS, LENGTH, MASK, WIDTH = 12, 7, 13, 8
# User 1 has one item only; user 3 has more than fit, and leaves no place for a [MASK].
HISTORIES = [
    [3, 1, 7, 2],
    [5],
    [6, 9],
    [4, 6, 1, 2, 3, 7, 5, 11],
    [12, 8, 10],
]
USERS = len(HISTORIES)


def interactions(histories):
    users = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    names = [pl.Series([str(n) for n in range(size)]) for size in (USERS, ITEMS)]
    items = np.concatenate(histories).astype(np.int32)
    return Interactions(users.astype(np.int32), items, np.arange(len(users)), *names)


TRAIN = interactions(HISTORIES)


def make_config(encoder, graph="none", **align):
    config = table.get_config()
    config.model.dim = WIDTH
    config.seq.update(encoder=encoder, blocks=2, heads=2, dropout=0.0, max_len=LENGTH)
    config.seq.feed_forward = 3
    config.graph.encoder = graph
    config.graph.update(batch_size=8)
    config.graph.ultragcn.update(neighbours=3, negatives=5)
    config.align.update(align)
    build.check(config)
    return config


def make_model(encoder, graph="none", **align):
    config = make_config(encoder, graph, **align)
    return build.make_model(config, USERS, ITEMS)


def pack(*rows):
    """Rows of one or more whole sequences, without targets; the rest is empty."""
    items, positions, segments = (np.zeros((len(rows), LENGTH), int) for _ in range(3))
    last = []
    for r, row in enumerate(rows):
        column = 0
        for n, history in enumerate(row, start=1):
            slots = slice(column, column + len(history))
            items[r, slots], segments[r, slots] = history, n
            positions[r, slots] = np.arange(len(history))
            column += len(history)
            last.append(r * LENGTH + column - 1)
    users, weights = np.arange(len(last)), np.ones(len(last), np.float32)
    rest = users, np.array(last), weights
    return packing.Batch(items, np.zeros_like(items), positions, segments, *rest)


# --- second writings ------------------------------------------------------------------


def numpy_gelu(x):
    """x times the normal distribution function."""
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_bert4rec(params, items):
    """docs/models.md#bert4rec: one sequence, embedding norm, two post-norm blocks."""
    p = in_float64(params["sequence"])
    table = np.vstack([in_float64(params["item_table"]), in_float64(params["token"])])
    x = table[items] + p["positions"][: len(items)]  # MASK is the row behind the items
    x = numpy_norm(p["embedding_norm"], x, 1e-12)
    every = np.ones((len(items), len(items)), bool)
    for block in range(2):
        attended = numpy_attention(p[f"attention_{block}"], x, x, 2, every)
        x = numpy_norm(p[f"attention_norm_{block}"], x + attended, 1e-12)
        first, second = (p[f"feed_forward_{name}_{block}"] for name in ("in", "out"))
        inner = numpy_gelu(x @ first["kernel"] + first["bias"])
        outer = inner @ second["kernel"] + second["bias"]
        x = numpy_norm(p[f"feed_forward_norm_{block}"], x + outer, 1e-12)
    return x


def numpy_esasrec(params, items):
    """docs/models.md#esasrec: gates from what enters the residual, SwiGLU."""
    p = in_float64(params["sequence"])
    x = in_float64(params["item_table"])[items] + p["positions"][: len(items)][::-1]
    past = np.tri(len(items), dtype=bool)
    for block in range(2):
        gate = p[f"attention_gate_{block}"]
        y = numpy_norm(p[f"attention_norm_{block}"], x, 1e-5)
        attended = numpy_attention(p[f"attention_{block}"], y, y, 2, past)
        x = x + sigmoid(x @ gate["kernel"] + gate["bias"]) * attended
        gate = p[f"gate_{block}"]
        y = numpy_norm(p[f"feed_forward_norm_{block}"], x, 1e-5)
        swish, up, down = (
            p[f"feed_forward_{name}_{block}"]["kernel"]
            for name in ("gate", "in", "out")
        )
        inner = y @ swish * sigmoid(y @ swish) * (y @ up)
        x = x + sigmoid(x @ gate["kernel"] + gate["bias"]) * (inner @ down)
    return x


MODELS = {name: make_model(name) for name in ("bert4rec", "esasrec")}
PARAMS = {name: make_params(model) for name, model in MODELS.items()}
ENCODE = {name: jax.jit(partial(Create.encode, m)) for name, m in MODELS.items()}
WRITINGS = {"bert4rec": numpy_bert4rec, "esasrec": numpy_esasrec}
both = pytest.mark.parametrize("name", ["bert4rec", "esasrec"])

BATCH = pack(
    [[3, 1, 7, 2], [5, MASK]], [[9], [2, 11, MASK, 6, 12]], [[10, 4, 8, 1, 1, 7, 3]]
)


def states(name, batch, params=None):
    params = params or PARAMS[name]
    found = ENCODE[name](params, params["item_table"], batch)
    return np.asarray(found).reshape(*batch.items.shape, WIDTH)


def batch_for(name):
    """eSASRec has no [MASK]."""
    items = np.where(BATCH.items == MASK, 4, BATCH.items)
    return BATCH if name == "bert4rec" else BATCH._replace(items=items)


@both
@pytest.mark.parametrize("small", [False, True], ids=["large", "small"])
def test_encoders_are_the_second_writing(name, small):
    """Small inputs show the epsilon of the norms, large weights the form of GELU."""
    scale = {"bert4rec": 1e-4, "esasrec": 5e-3}[name] if small else 1.0
    inputs = PARAMS[name].keys() & {"item_table", "token"}
    params = PARAMS[name] | {group: scale * PARAMS[name][group] for group in inputs}
    own = dict(params["sequence"], positions=scale * params["sequence"]["positions"])
    for block in range(2):
        layer = f"feed_forward_in_{block}"
        own[layer] = jax.tree.map(lambda x: 2 * x, own[layer])
    params["sequence"] = own
    batch = batch_for(name)
    found = states(name, batch, params)
    for row, segments, items in zip(found, batch.segments, batch.items, strict=True):
        for segment in range(1, segments.max() + 1):
            own = segments == segment
            expected = WRITINGS[name](params, items[own])
            np.testing.assert_allclose(row[own], expected, rtol=1e-5, atol=1e-5)


@both
def test_a_sequence_does_not_see_its_row_neighbours_or_empty_slots(name):
    batch = batch_for(name)
    before = states(name, batch)
    for row, segment in ((0, 1), (0, 2), (1, 1), (1, 2)):
        own = batch.segments == segment
        own[np.arange(3) != row] = False
        changed = batch._replace(items=np.where(own, batch.items % 12 + 1, batch.items))
        after = states(name, changed)
        others = ~own & (batch.segments > 0)
        np.testing.assert_array_equal(before[others], after[others])
        assert (before[own] != after[own]).any(-1).all()
    empty = batch.segments == 0
    assert empty.sum() == 2
    after = states(name, batch._replace(items=np.where(empty, 5, batch.items)))
    np.testing.assert_array_equal(before[~empty], after[~empty])


@both
def test_bert4rec_reads_both_directions_and_esasrec_only_the_past(name):
    batch = batch_for(name)
    before = states(name, batch)[2]
    for column in range(LENGTH):  # of the one sequence of seven items
        items = batch.items.copy()
        items[2, column] = 12
        moved = np.abs(states(name, batch._replace(items=items))[2] - before).max(-1)
        assert (moved[column:] > 1e-4).all()
        if name == "bert4rec":
            assert (moved > 1e-4).all()
        else:
            assert (moved[:column] == 0).all()


@pytest.mark.parametrize("name", ["bert4rec", "esasrec", "sasrec"])
def test_states_that_are_read_alone_are_those_of_all(name):
    model = make_model(name)
    params, batch = make_params(model), batch_for(name)

    @jax.jit
    def encode(params, read):
        states = Create.encode(model, params, params["item_table"], batch, read=read)
        return states.reshape(len(batch.items), -1, WIDTH)

    everything = np.asarray(encode(params, None))
    read = np.array([[5, 0, 3], [2, 2, 1], [6, 4, 0]])
    found = encode(params, read)
    expected = np.take_along_axis(everything, read[..., None], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


# --- masked batches -------------------------------------------------------------------

SEQUENCES = packing.training_sequences(TRAIN, LENGTH, MASK, hides=True)
KEPT = {0: [3, 1, 7, 2], 2: [6, 9], 3: [6, 1, 2, 3, 7, 5, 11], 4: [12, 8, 10]}


training_view = jax.jit(partial(Create.training_view, MODELS["bert4rec"]))


def masked_batch(hidden, sequences=SEQUENCES):
    """One step with two spare places."""
    layout = packing.make_layout(sequences.lengths, batch=4, row_length=LENGTH)
    plan = packing.plan_epoch(sequences.lengths, layout, seed=0, epoch=0)
    batch = packing.fill(plan, sequences, layout, hidden=hidden)
    return jax.tree.map(lambda x: x[0], batch)


def slots_of(batch, user):
    """The slots of a user's sequence, oldest first, its special one last."""
    place = np.flatnonzero((batch.users == user) & (batch.weights > 0))
    assert len(place) == 1
    last = batch.last[place[0]]
    length = batch.positions.ravel()[last] + 1
    return np.arange(last + 1 - length, last + 1)


def followed(items):
    """A history and the [MASK] after it, where there is room."""
    return [*items, MASK][:LENGTH]


def test_a_masked_sequence_is_the_newest_items_and_a_mask_where_it_fits():
    assert SEQUENCES.owners.tolist() == list(KEPT)  # who has two items or more
    assert SEQUENCES.lengths.tolist() == [5, 3, 7, 4]
    batch = masked_batch(np.zeros(19, bool))
    for user, kept in KEPT.items():
        slots = slots_of(batch, user)
        assert batch.items.ravel()[slots].tolist() == followed(kept)
        assert batch.positions.ravel()[slots].tolist() == list(range(len(slots)))
        assert len(set(batch.segments.ravel()[slots].tolist())) == 1
    assert (batch.segments > 0).sum() == 19 and not batch.targets.any()


def test_targets_are_exactly_the_hidden_items_and_never_the_mask():
    # By sequence: the second and the [MASK] of user 0, none of user 2, all of user 3,
    # the last item of user 4.
    hidden = np.array([int(c) for c in "0100100011111110010"]) > 0
    expected = {0: [0, 1, 0, 0, 0], 2: [0, 0, 0], 3: KEPT[3], 4: [0, 0, 10, 0]}
    batch = masked_batch(hidden)
    targets = batch.targets.ravel()
    for user, own in expected.items():
        assert targets[slots_of(batch, user)].tolist() == own
    assert np.count_nonzero(targets) == 9
    # The items themselves stay: only the model's view hides them.
    np.testing.assert_array_equal(batch.items, masked_batch(~hidden).items)


def test_hiding_is_a_pure_function_of_seed_and_epoch():
    ends = dict(begin=np.zeros(1, int), end=np.array([20_000]))
    many = replace(SEQUENCES, **ends, room=20_000)
    first = packing.hide(many, 0.2, seed=3, epoch=5)
    np.testing.assert_array_equal(first, packing.hide(many, 0.2, seed=3, epoch=5))
    assert first.shape == (20_000,) and first.dtype == bool
    assert abs(first.mean() - 0.2) < 0.01  # 3.5 deviations
    for seed, epoch in ((3, 6), (4, 5), (5, 3)):
        other = packing.hide(many, 0.2, seed=seed, epoch=epoch)
        assert 0.3 < (first != other).mean() < 0.34  # 2 x 0.2 x 0.8: independent
    assert abs(packing.hide(many, 0.6, seed=3, epoch=5).mean() - 0.6) < 0.012


def test_the_training_view_hides_targets_and_leaves_out_masks_after_histories():
    batch = masked_batch(np.array([int(c) for c in "0100000011000000010"]) > 0)
    view = training_view(batch)
    items, segments = np.asarray(view.items).ravel(), np.asarray(view.segments).ravel()
    seen = {
        0: [3, MASK, 7, 2],
        2: [6, 9],
        3: [MASK, MASK, 2, 3, 7, 5, 11],
        4: [12, 8, MASK],
    }
    for user, expected in seen.items():
        slots = slots_of(batch, user)
        read, after = slots[: len(expected)], slots[len(expected) :]
        assert items[read].tolist() == expected
        np.testing.assert_array_equal(segments[read], batch.segments.ravel()[read])
        assert (segments[after] == 0).all() and len(after) == (user != 3)
    assert (segments > 0).sum() == 16
    same = "targets", "positions", "users", "last", "weights"
    for name in same:
        np.testing.assert_array_equal(getattr(view, name), getattr(batch, name))
    plain = Create.training_view(MODELS["esasrec"], batch)
    assert plain is batch  # the objective `next` hides nothing


def test_the_query_view_ends_every_history_with_a_mask():
    six, seven = [3, 1, 7, 2, 5, 9], [4, 6, 1, 2, 3, 7, 5]
    batch = pack([followed(six)], [followed(seven)], [[5, MASK], [9, 8, 2, MASK]])
    view = bert4rec.query_view(batch, MODELS["bert4rec"].mask)
    rows = [[*six, MASK], [*seven[1:], MASK], [5, MASK, 9, 8, 2, MASK, 0]]
    assert np.asarray(view.items).tolist() == rows
    for name in ("positions", "segments", "last"):
        np.testing.assert_array_equal(getattr(view, name), getattr(batch, name))


def test_the_model_does_not_see_which_items_are_hidden():
    hidden = np.array([int(c) for c in "0100000011000000010"]) > 0
    other = np.where(hidden, 8, 0)  # other items in their place
    log = TRAIN.items.copy()
    start = 0
    slices = SEQUENCES.begin, SEQUENCES.end, SEQUENCES.lengths
    for begin, end, slots in zip(*slices, strict=True):
        own = other[start : start + end - begin]
        log[begin:end] = np.where(own > 0, own, log[begin:end])
        start += slots
    batches = masked_batch(hidden), masked_batch(hidden, replace(SEQUENCES, log=log))
    assert (batches[0].targets != batches[1].targets).sum() == 4
    views = [training_view(batch) for batch in batches]
    for name in ("items", "positions", "segments"):
        np.testing.assert_array_equal(*(getattr(view, name) for view in views))


def four_queries(n_items):
    """After histories of one, three, nine and six items."""
    sizes = [1, 3, 9, 6]
    end = np.cumsum(sizes)
    return Holdout(
        users=np.array([4, 0, 2, 1], np.int32),
        log=(np.arange(19) % 12 + 1).astype(np.int32),
        begin=end - sizes,
        end=end,
        targets=np.array([5, 6, 7, 8], np.int32),
        offsets=np.arange(5),
        candidates=np.arange(n_items + 1) > 0,
    )


def test_queries_end_with_a_mask_after_the_newest_items():
    holdout = four_queries(ITEMS)
    axes = dict(axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    mesh = jax.make_mesh((1,), ("data",), **axes)
    evaluator = evaluate.Evaluator(
        *(holdout, None, mesh),
        **dict(ks=[1], max_len=LENGTH, filter_seen=False, batch=4, mask=MASK),
    )
    (queries,) = evaluator.chunks()
    batch = jax.tree.map(lambda x: np.asarray(x)[0], queries.histories)
    for n, user in enumerate(holdout.users):
        newest = holdout.log[holdout.begin[n] : holdout.end[n]][-(LENGTH - 1) :]
        found = batch.items.ravel()[slots_of(batch, user)]
        assert found.tolist() == [*newest, MASK]
    # And the state at the end, the one that is scored, is that of the [MASK].
    model, params = MODELS["bert4rec"], PARAMS["bert4rec"]
    query = jax.jit(partial(Create.query_vectors, model, by_graph=False))
    vectors = query(params, params["item_table"], batch)
    place = np.flatnonzero(batch.users == 2)[0]
    newest = [8, 9, 10, 11, 12, 1]
    assert batch.weights[place] == 1
    expected = numpy_bert4rec(params, [*newest, MASK])[-1]
    np.testing.assert_allclose(vectors[place], expected, rtol=5e-5, atol=5e-5)


# --- joint losses ---------------------------------------------------------------------


def make_inputs(config):
    """(model, params, graph, one batch) of the tiny log."""
    model = build.make_model(config, USERS, ITEMS)
    rows, pairs, graph = feeds.make_graph(config, model, TRAIN, shards=1)
    phase = build.make_phases(config)[-1]
    config.train.batch = 4
    config.train.mask = 0.4
    feed = feeds.Feed(config, model, phase, TRAIN, rows, pairs, shards=1)
    batch = jax.tree.map(lambda x: x[0], feed.batch(feed.plan(0), 0))
    return model, make_params(model), graph, batch


@pytest.mark.parametrize("bert_state", ["appended_mask", "last_position"])
def test_the_state_that_bert4rec_aligns_is_the_chosen_one(bert_state):
    config = make_config("bert4rec", "ultragcn", bert_state=bert_state)
    model, params, graph, batch = make_inputs(config)
    sequences, phase = batch.sequences, build.make_phases(config)[-1]

    @jax.jit
    @jax.value_and_grad
    def alignment(params, batch, graph):
        args = params, batch, graph, jax.random.key(0)
        return Create.loss(model, phase, *args)[1]["align"]

    value, slopes = alignment(params, batch, graph)
    # The whole history with a [MASK] after it, or the view of training before it.
    expected, users = [], []
    for user in KEPT:
        slots = slots_of(sequences, user)
        items = sequences.items.ravel()[slots]
        if bert_state == "last_position":
            targets = sequences.targets.ravel()[slots]
            items = np.where(targets > 0, MASK, items)[: len(KEPT[user])]
        else:
            items = [*KEPT[user][1 - LENGTH :], MASK]
        expected.append(numpy_bert4rec(params, items)[-1])
        users.append(params["user_table"][user])
    assert sequences.targets.any()
    views = jnp.array(expected, jnp.float32), jnp.array(users)
    second = losses.barlow_twins(*views, jnp.ones(len(users)))
    np.testing.assert_allclose(value, second, rtol=1e-4)
    for group in ("item_table", "token", "sequence", "user_table"):
        leaves = jax.tree.leaves(slopes[group])
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert max(np.abs(leaf).max() for leaf in leaves) > 1e-5


# --- [MASK] ---------------------------------------------------------------------------


def test_the_mask_is_a_parameter_behind_the_table():
    model, keys = MODELS["bert4rec"], jax.random.split(jax.random.key(5), 4)
    params = model.init_tables(keys)
    drawn = model.item_std * jax.random.normal(keys[0], (ITEMS + 2, WIDTH))
    np.testing.assert_array_equal(params["item_table"], drawn[:-1].at[0].set(0.0))
    np.testing.assert_array_equal(params["token"], drawn[-1])
    assert model.n_rows == MASK == model.mask == ITEMS + 1
    assert "token" in PARAMS["bert4rec"] and "token" not in PARAMS["esasrec"]
    assert MODELS["esasrec"].mask == 0


def test_vectors_are_rows_of_the_table_and_the_token_at_the_mask():
    model, ids = MODELS["bert4rec"], np.array([[3, MASK, 0], [MASK, ITEMS, 3]])
    table, token = (PARAMS["bert4rec"][name] for name in ("item_table", "token"))
    weights = np.random.default_rng(0).normal(size=(2, 3, WIDTH)).astype(np.float32)

    @jax.value_and_grad
    def apart(both):
        return jnp.sum(weights * model.look_up(both[0], ids, both[1]))

    @jax.value_and_grad
    def together(both):
        return jnp.sum(weights * jnp.vstack(both)[ids])

    found, expected = apart((table, token)), together((table, token))
    np.testing.assert_array_equal(model.look_up(table, ids, token)[0, 1], token)
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_mask_has_no_node_and_learns_with_the_transformer():
    config = make_config("bert4rec", "lightgcn")
    with_mask, without = (make_model(name, "lightgcn") for name in MODELS)
    graphs = [
        feeds.make_graph(config, model, TRAIN, shards=1)[2]
        for model in (with_mask, without)
    ]
    jax.tree.map(np.testing.assert_array_equal, *graphs)
    warmup, joint = build.make_phases(config)
    assert "token" not in with_mask.trained_groups(warmup)
    assert "token" in with_mask.trained_groups(joint)


@pytest.mark.parametrize("graph", ["lightgcn", "ultragcn"])
@pytest.mark.parametrize("encoder", ["sasrec", "bert4rec"])
def test_every_combination_of_encoders_and_alignment_has_its_losses(encoder, graph):
    kinds = "none", "infonce", "barlow_twins"
    configs = [make_config(encoder, graph, kind=kind) for kind in kinds]
    for config in configs:
        config.seq.blocks = 1
    inputs = [make_inputs(config) for config in configs]
    _, params, prepared, batch = inputs[0]
    assert isinstance(batch.edges, EdgeBatch)

    @jax.jit
    def run(params, batch, prepared):
        return [
            Create.loss(
                *(model, build.make_phases(config)[-1]),
                *(params, batch, prepared, jax.random.key(0)),
            )
            for config, (model, *_) in zip(configs, inputs, strict=True)
        ]

    results = run(params, batch, prepared)
    weights = {"local": 1.0, "global": 0.1, "align": 0.2}
    for kind, (total, parts) in zip(kinds, results, strict=True):
        names = {"local", "global"} | ({"align"} if kind != "none" else set())
        assert parts.keys() == names
        assert np.isfinite(list(parts.values())).all()
        expected = sum(weights[name] * value for name, value in parts.items())
        np.testing.assert_allclose(total, expected, rtol=1e-6)
    (_, none), (_, nce), (_, twins) = results
    for name in ("local", "global"):  # the alignment is an addition
        np.testing.assert_allclose(nce[name], none[name], rtol=1e-5)
        np.testing.assert_allclose(twins[name], none[name], rtol=1e-5)
    assert abs(nce["align"] - twins["align"]) > 1e-3


# --- an encoder from elsewhere --------------------------------------------------------

TOY = '''
"""The mean of the items so far, through one matrix."""

import flax.linen as nn
import jax.numpy as jnp

OBJECTIVE = "next"


class Encoder(nn.Module):
    blocks: int
    heads: int
    dropout: float
    max_len: int
    feed_forward: int

    @nn.compact
    def __call__(self, x, positions, segments, train):
        own = segments[:, :, None] == segments[:, None, :]
        past = jnp.tril(own.astype(x.dtype))
        return nn.Dense(x.shape[-1])(past @ x / past.sum(-1, keepdims=True))
'''


def write_module(directory, package, source):
    (directory / package).mkdir()
    (directory / package / "__init__.py").touch()
    (directory / package / "encoder.py").write_text(source)


def test_an_encoder_outside_the_package_runs(tmp_path, monkeypatch):
    write_module(tmp_path, "toy_encoders", TOY)
    monkeypatch.syspath_prepend(tmp_path)
    rows = ["user,item,time"]
    for user in range(40):
        walk = [f"u{user},i{(user + n) % 10},{10 * n + user % 7}" for n in range(8)]
        rows += walk
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    config = make_config("toy_encoders.encoder")
    config.data.path = str(tmp_path / "log.csv")
    config.train.update(batch=16, epochs=1)
    config.retrain.epochs = "none"
    config.seq.blocks = 5
    encoder = build.make_model(config, 40, 10).encoder
    assert type(encoder).__module__ == "toy_encoders.encoder" and encoder.blocks == 5
    result = experiment.train_and_evaluate(config, str(tmp_path / "run"))
    assert result["epochs"] == 1 and result["test"]["ndcg@10"] > 0
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    line = json.loads(line)
    assert line["phase"] == "joint" and "loss/align" not in line
    assert abs(line["loss/local"] - np.log(10)) < 0.1  # a first epoch: a guess


@pytest.mark.parametrize(
    "name, source, reason",
    [
        ("nowhere_at_all.encoder", None, "No module named 'nowhere_at_all'"),
        ("unheard_of", None, "a module with OBJECTIVE and Encoder"),
        ("lightgcn", None, "a module with OBJECTIVE and Encoder"),
        ("create_jax.models.lightgcn", None, "OBJECTIVE is None"),
        ("no_class.encoder", 'OBJECTIVE = "next"', "no attribute 'Encoder'"),
        ("odd_aim.encoder", 'OBJECTIVE = "guess"', "OBJECTIVE is 'guess'"),
    ],
)
def test_a_module_that_is_no_encoder_is_an_input_error_in_one_line(
    tmp_path, monkeypatch, name, source, reason
):
    if source is not None:
        write_module(tmp_path, name.partition(".")[0], source)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as caught:
        make_config(name)
    message = str(caught.value)
    assert message.startswith(f"config.seq.encoder is '{name}'; expected one of sasrec")
    assert reason in message and "\n" not in message


def test_the_loss_of_hidden_items_reads_their_states_only():
    config = make_config("bert4rec", "none")
    config.seq.blocks = 1
    phase = build.make_phases(config)[-1]
    model, params, graph, batch = make_inputs(config)
    targets = np.asarray(batch.sequences.targets)
    several, key = int((targets > 0).sum(1).max()), jax.random.key(0)
    assert several > 1 and (targets > 0).sum() > several

    @partial(jax.jit, static_argnames="share")
    def loss(targets, share):
        def total(params):
            other = batch._replace(sequences=batch.sequences._replace(targets=targets))
            own = replace(model, mask_share=share)
            return Create.loss(own, phase, params, other, graph, key)[0]

        return jax.value_and_grad(total)(params)

    def columns(share):
        own = replace(model, mask_share=share)
        return Create.hidden_columns(own, phase, jnp.asarray(targets))

    assert columns(0.5) is None
    enough = 0.01 if several <= 2 else 0.06
    assert several <= columns(enough).shape[1] < LENGTH
    expected, slopes = loss(targets, 0.5)
    found, own_slopes = loss(targets, enough)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for one, other in zip(
        jax.tree.leaves(own_slopes), jax.tree.leaves(slopes), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)
    # Of a row with more targets than columns, the first ones are learnt from.
    few = 1e-4
    kept = targets * (np.cumsum(targets > 0, axis=1) <= columns(few).shape[1])
    assert 0 < (kept > 0).sum() < (targets > 0).sum()

    @jax.jit
    def of_all_states(params, sequences, kept):
        items, view = params["item_table"], Create.training_view(model, sequences)
        states = Create.encode(model, params, items, view)
        learnt = sequences._replace(targets=kept)
        return model.local_loss(states, items, learnt, jax.random.key(0))

    expected = of_all_states(params, batch.sequences, kept)
    np.testing.assert_allclose(loss(targets, few)[0], expected, rtol=1e-6)


def test_aligning_every_position_of_bert4rec_skips_the_appended_masks():
    """`last_position` with `all`: as many vectors as items, each with its own user."""
    config = make_config(
        "bert4rec", "ultragcn", bert_state="last_position", positions="all"
    )
    model, _, _, batch = make_inputs(config)
    batch = batch.sequences

    @jax.jit
    def align(batch):  # without another pass, so without parameters
        view = Create.training_view(model, batch)
        _, aligned = Create.masked_states(model, {}, None, batch, view, None, None)
        return aligned, transformer.sequence_of_slot(aligned)

    aligned, owner = jax.device_get(align(batch))
    real, items = aligned.segments.reshape(-1) > 0, batch.items
    assert real.sum() == ((items > 0) & (items < MASK)).sum()
    for row, (last, weight) in enumerate(zip(batch.last, batch.weights, strict=True)):
        if weight:  # from its first item to the one before its [MASK]
            first = int(last) - int(batch.positions.reshape(-1)[last])
            end = int(last) + (items.reshape(-1)[last] != MASK)
            assert (owner[first:end] == row).all()
