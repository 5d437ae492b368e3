"""Our SASRec against RecTools' on the weights of one RecTools epoch.

python -m benchmarks.parity.sasrec

The blocks are the same. Queries are normalised, keys and values are not. The residual
adds to the normalised side, and there is a norm at the end. RecTools' LayerNorms inside
the blocks have eps 1e-5; ours have 1e-8, as in the public code. RecTools scales items
by sqrt(d) only on request. This script sets both as in our model. It also prints how
much each default of RecTools changes the logits. Exits with 1 if a logit differs by
more than 1e-4.
"""

import sys

from benchmarks.parity import histories, rectools_net
from benchmarks.parity.rectools_net import BLOCKS, HEADS
from create_jax.models.sasrec import Encoder

TOLERANCE = 1e-4


def parameters(net) -> dict:
    params = {
        "positions": net.positions(),
        "final_norm": histories.norm(net.torch.transformer_layers.last_layernorm),
    }
    for n, block in enumerate(net.blocks):
        params |= {
            f"attention_norm_{n}": histories.norm(block.q_layer_norm),
            f"attention_{n}": net.attention(block),
            f"feed_forward_norm_{n}": histories.norm(block.ff_layer_norm),
            f"feed_forward_in_{n}": histories.dense(block.feed_forward.ff_linear_1),
            f"feed_forward_out_{n}": histories.dense(block.feed_forward.ff_linear_2),
        }
    return params


def main() -> int:
    log = histories.load()
    net = rectools_net.train(log, pos_encoding_kwargs={"use_scale_factor": True})
    norms = [n for b in net.blocks for n in (b.q_layer_norm, b.ff_layer_norm)]
    for norm in norms:
        norm.eps = 1e-8
    defaults = {
        "eps 1e-5 in the blocks": (norms, "eps", 1e-5),
        "no sqrt(d)": ([net.torch.pos_encoding_layer], "use_scale_factor", False),
        "no padding mask": net.no_padding_mask(),
    }
    encoder = Encoder(BLOCKS, HEADS, 0.0, histories.LENGTH)
    past = histories.draw(log)
    found = rectools_net.compare(
        encoder, parameters(net), net, past, defaults, reverse=True
    )
    return int(not found <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
