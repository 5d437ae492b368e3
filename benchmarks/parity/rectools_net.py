"""RecTools' SASRecModel, trained a little, and its logits; see sasrec.py, esasrec.py.

Differences from our encoders outside the blocks, and the exact mapping:

* RecTools counts positions from the newest item, our SASRec from the oldest. Positions
  are an input of our encoders, so SASRec gets reversed ones.
* RecTools pads on the left, our encoders on the right. With a padding mask that has no
  effect. The mask is off by default, and then items attend to padding.
* RecTools numbers items by first appearance. `Net.ids` maps our items to these numbers.
"""

import logging
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

from benchmarks.parity import histories
from create_jax.data.interactions import take

DIM, BLOCKS, HEADS = 64, 2, 2


class Net(NamedTuple):
    """torch: the network. ids: [I + 1] its item ids, 0 = unknown or padding."""

    torch: torch.nn.Module
    ids: np.ndarray

    @property
    def known(self) -> np.ndarray:
        return np.flatnonzero(self.ids)

    @property
    def blocks(self):
        return self.torch.transformer_layers.transformer_blocks

    def table(self):
        """[I + 1, D], the padding row zero."""
        table = histories.array(self.torch.item_model.get_all_embeddings())[self.ids]
        return table.at[0].set(0)

    def positions(self):
        return histories.array(self.torch.pos_encoding_layer.pos_emb.weight)

    def attention(self, block):
        layer = block.multi_head_attn
        weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
        inputs = zip(weights, biases, strict=True)
        output = layer.out_proj.weight, layer.out_proj.bias
        return histories.attention(HEADS, *inputs, output)

    def logits(self, past) -> np.ndarray:
        """[N, known items] of the filled slots, row by row."""
        rows = histories.pad(past, "left")
        with torch.no_grad():
            x = torch.from_numpy(self.ids[rows]).long()
            logits = self.torch({"x": x})
        return logits.numpy()[rows > 0][:, self.ids[self.known]]

    def no_padding_mask(self):
        return [self.torch], "use_key_padding_mask", False


def train(log, **settings) -> Net:
    """One epoch on the last LENGTH + 1 items of each user."""
    size = dict(n_factors=DIM, n_blocks=BLOCKS, n_heads=HEADS)
    # One epoch should move the weights.
    return fit(log, histories.LENGTH, 0, **size, lr=1e-2, epochs=1, **settings)


def fit(log, length: int, seed: int, **settings) -> Net:
    """Trains by RecTools' `fit` on the last `length` + 1 items of each user."""
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(seed)
    last = take(log, histories.recent(log, length + 1))
    frame = pd.DataFrame(
        {
            Columns.User: last.users,
            Columns.Item: last.items,
            Columns.Weight: 1,
            Columns.Datetime: pd.to_datetime(last.times, unit="s"),
        }
    )
    model = SASRecModel(session_max_len=length, use_key_padding_mask=True, **settings)
    model.fit(Dataset.construct(frame))
    ids = np.zeros(log.n_items + 1, np.int64)
    # Users with one item train nothing, and items that only they have get no number.
    known = model.data_preparator.get_known_item_ids().astype(np.int64)
    ids[known] = model.data_preparator.get_known_items_sorted_internal_ids()
    return Net(model.torch_model.cpu().eval(), ids)


def our_logits(encoder, params, net: Net, past, newest_first: bool) -> np.ndarray:
    """Ours with the network's weights, in the order of `Net.logits`."""
    rows, table = histories.pad(past, "right"), net.table()
    positions = np.tile(np.arange(histories.LENGTH), (len(rows), 1))
    if newest_first:
        sizes = (rows > 0).sum(1, keepdims=True)
        positions = np.maximum(sizes - 1 - positions, 0)
    states = histories.encode(encoder, params, table, rows, positions)
    return states @ np.asarray(table)[net.known].T


def compare(encoder, params, net: Net, past, defaults, reverse: bool) -> float:
    """The largest difference of a logit; prints it, and the effect of each default.

    defaults: name -> (modules, attribute, value) as RecTools has it, one at a time.
    reverse: the encoder counts from the oldest item, and is given reversed positions.
    """
    ours = our_logits(encoder, params, net, past, newest_first=reverse)
    theirs = net.logits(past)
    found = float(np.abs(ours - theirs).max())
    print(f"{len(past)} histories, {ours.shape[0]:,} states, {ours.shape[1]:,} items")
    print(f"logits: deviation {theirs.std():.2f}, largest difference {found:.1e}")
    print("with one thing as the libraries have it by default:")
    other = our_logits(encoder, params, net, past, newest_first=not reverse)
    print(f"  ours: positions from the oldest  {np.abs(other - theirs).max():.1e}")
    for name, (modules, attribute, value) in defaults.items():
        mapped = getattr(modules[0], attribute)
        for module in modules:
            setattr(module, attribute, value)
        changed = np.abs(ours - net.logits(past)).max()
        for module in modules:
            setattr(module, attribute, mapped)
        print(f"  RecTools: {name:22} {changed:.1e}")
    return found
