"""Our BERT4Rec against the BertModel of transformers, random weights.

python -m benchmarks.parity.bert4rec

The input is a history's last items and [MASK], in both directions, padding masked.
Exits with 1 if a state of a filled slot differs by more than 1e-4.
"""

import sys

import numpy as np
import torch
from transformers import BertConfig, BertModel

from benchmarks.parity import histories
from create_jax.models.bert4rec import Encoder

DIM, BLOCKS, HEADS, FEED_FORWARD, TOLERANCE = 64, 2, 2, 4, 1e-4


def new_bert(n_items: int, length: int) -> BertModel:
    """Item 0 is padding, n_items + 1 [MASK]."""
    config = BertConfig(
        vocab_size=n_items + 2,
        hidden_size=DIM,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        intermediate_size=FEED_FORWARD * DIM,
        max_position_embeddings=length,
        type_vocab_size=1,
        attn_implementation="eager",
    )
    return BertModel(config, add_pooling_layer=False)


def make_bert(n_items: int) -> BertModel:
    torch.manual_seed(0)
    bert = new_bert(n_items, histories.LENGTH).eval()
    with torch.no_grad():
        for weight in bert.parameters():  # fresh biases are 0, norms 1
            weight += 0.1 * torch.randn_like(weight)
    return bert


def parameters(bert: BertModel) -> dict:
    first = bert.embeddings
    # Its single token type is a constant; our model has none.
    positions = first.position_embeddings.weight + first.token_type_embeddings.weight
    params = {
        "positions": histories.array(positions),
        "embedding_norm": histories.norm(first.LayerNorm),
    }
    for n, block in enumerate(bert.encoder.layer):
        own, output = block.attention.self, block.attention.output
        layers = own.query, own.key, own.value, output.dense
        pairs = [(layer.weight, layer.bias) for layer in layers]
        params |= {
            f"attention_{n}": histories.attention(HEADS, *pairs),
            f"attention_norm_{n}": histories.norm(output.LayerNorm),
            f"feed_forward_in_{n}": histories.dense(block.intermediate.dense),
            f"feed_forward_out_{n}": histories.dense(block.output.dense),
            f"feed_forward_norm_{n}": histories.norm(block.output.LayerNorm),
        }
    return params


def main() -> int:
    log = histories.load()
    bert = make_bert(log.n_items)
    past = histories.draw(log, length=histories.LENGTH - 1)
    rows = histories.pad([np.append(p, log.n_items + 1) for p in past], "right")
    with torch.no_grad():
        x = torch.from_numpy(rows).long()
        states = bert(x, attention_mask=(x > 0).long()).last_hidden_state
    theirs = states.numpy()[rows > 0]

    encoder = Encoder(BLOCKS, HEADS, 0.0, histories.LENGTH, FEED_FORWARD)
    table = histories.array(bert.embeddings.word_embeddings.weight)
    positions = np.tile(np.arange(histories.LENGTH), (len(rows), 1))
    ours = histories.encode(encoder, parameters(bert), table, rows, positions)
    found = float(np.abs(ours - theirs).max())
    print(f"{len(past)} histories, {len(ours):,} states of width {DIM}")
    print(f"states: deviation {theirs.std():.2f}, largest difference {found:.1e}")
    return int(not found <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
