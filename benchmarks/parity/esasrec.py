"""Our eSASRec against RecTools' LiGR layers on the weights of one RecTools epoch.

python -m benchmarks.parity.esasrec

The blocks are the same. Both gates have a bias and read the state before the norm. The
second gate reads it after the residual of the attention. The SwiGLU has no bias. There
is no norm at the end. The public runs (blondered/transformer_benchmark) mask the
padding. Exits with 1 if a logit differs by more than 1e-4.
"""

import sys

from rectools.models.nn.transformers.ligr import LiGRLayers

from benchmarks.parity import histories, rectools_net
from benchmarks.parity.rectools_net import BLOCKS, HEADS
from create_jax.models.esasrec import Encoder

FEED_FORWARD, TOLERANCE = 4, 1e-4


def parameters(net) -> dict:
    params = {"positions": net.positions()}
    for n, block in enumerate(net.blocks):
        swiglu = block.feed_forward
        params |= {
            f"attention_norm_{n}": histories.norm(block.layer_norm_1),
            f"attention_{n}": net.attention(block),
            f"attention_gate_{n}": histories.dense(block.gating_linear_1),
            f"feed_forward_norm_{n}": histories.norm(block.layer_norm_2),
            f"feed_forward_gate_{n}": histories.dense(swiglu.ff_linear_1),
            f"feed_forward_in_{n}": histories.dense(swiglu.ff_linear_3),
            f"feed_forward_out_{n}": histories.dense(swiglu.ff_linear_2),
            f"gate_{n}": histories.dense(block.gating_linear_2),
        }
    return params


def main() -> int:
    log = histories.load()
    net = rectools_net.train(
        log,
        transformer_layers_type=LiGRLayers,
        transformer_layers_kwargs={"ff_factors_multiplier": FEED_FORWARD},
    )
    encoder = Encoder(BLOCKS, HEADS, 0.0, histories.LENGTH, FEED_FORWARD)
    past = histories.draw(log)
    defaults = {"no padding mask": net.no_padding_mask()}
    found = rectools_net.compare(
        encoder, parameters(net), net, past, defaults, reverse=False
    )
    return int(not found <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
