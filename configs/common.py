"""Every setting, its default, and what it means. Data sets change a few of them.

Numbers in parentheses are the open choices of the paper that a setting decides, as
numbered in docs/choices.md.
"""

from ml_collections import ConfigDict

from create_jax import methods


def get_config(method: str | None = None, *, dropout: float = 0.3) -> ConfigDict:
    """METHOD: create (default), another of `methods.METHODS`, or the dotted path of a
    module with a row like theirs.

    dropout: of SASRec on this data; BERT4Rec and eSASRec have their sources' own.
    """
    config = ConfigDict(
        {
            "method": method or "create",
            "seed": 0,  # (29)
            # Several: one run each, their mean and deviation; () = `seed` alone.
            "seeds": (),  # (29)
            # Methods to run as well, for a table side by side.
            "compare": (),
            "data": {
                "name": "table",
                "loader": "table",
                "path": "",  # empty: the default place in the data directory
                "counts": (),  # users, items, interactions to insist on; () = any
                "k_core": 0,  # keep users and items with this many rows; 0 = all
                "drop_repeats": True,  # of the same item in a row by the same user
                "table": {  # loader `table`: the form of your own log
                    "format": "auto",  # csv, jsonl, parquet; auto: by its content
                    "separator": "auto",  # of , tab ; | :: what shows the columns
                    "quoting": True,  # False: a quote is a character as any other
                    "encoding": "auto",  # by the byte order mark, else utf-8; latin-1
                    "header": True,  # without one, columns are numbers from 0
                    "columns": {
                        "user": "user",
                        "item": "item",
                        "time": "time",
                        "rating": "",  # of the signed graph; "" = none
                    },
                    "time_unit": "auto",  # s, ms, us, ns, iso; auto: by their size
                    # False: times, any numbers, only say what came before what.
                    "has_clock": True,
                    "titles": "",  # of --mode=export: a file of columns id and title
                },
            },
            "split": {
                "kind": "global_temporal",  # or leave_one_out
                "q_test": 0.8,  # quantile of all times that ends training
                # by_time, last_train_item, by_user, none. auto: by_time, or
                # last_train_item with leave_one_out, which has no other.
                "validation": "auto",
                "q_val": 0.9,  # the same inside the training rows
                "ties": "file",  # rows of one user at one time: file order, or random
                "seed": 0,  # of all that is random in the split
            },
            "eval": {
                "target": "last",  # first, random, successive, all
                # To report beside it; each is ranked, and `successive` asks for every
                # test row of a user.
                "targets": ("last", "first", "random", "successive"),
                "cold_items": "keep_as_miss",  # targets unseen in training; or drop
                "history": "full",  # before the target; train: only up to the cut
                "candidates": "all",  # rank all items, or those seen in training: train
                "filter_seen": True,  # hide the history from the ranking
                "ks": (10, 100),
                # More than ndcg, recall and mrr: ("your.module.metric", ...).
                "metrics": (),
                # One at a cut-off; or mrr, log_reciprocal_rank, log_likelihood.
                "select_by": "log_reciprocal_rank",  # what stops and selects (27)
                "select_mean": 5,  # as a mean of so many, the newest ones (27)
                "select_target": "",  # the rule of its queries; "": that of `target`
                # Most users that validation and test ask, drawn by split.seed; 0: all.
                "queries": 0,
                "batch": 256,  # queries a step
                "every": 1,  # epochs between validations
            },
            "model": {
                "dim": 64,  # (22)
                "item_std": 0.02,  # deviation of a table's start (35)
                "user_std": 0.02,  # (35)
                # Of float32 products in training: highest (float32), high (TF32 on
                # NVIDIA, three bfloat16 on TPU), default (the device's fastest).
                "precision": "highest",
                # Of dropout and sampled negatives: threefry2x32 (the same numbers on
                # every kind of device), rbg (the device's own generator).
                "random": "threefry2x32",
            },
            "seq": {  # (21, 23, 24)
                "encoder": "sasrec",  # of CREATE: bert4rec, esasrec, or your.module
                "blocks": 2,
                "heads": 1,
                "dropout": dropout,
                "max_len": 128,
                "feed_forward": 1,  # width, as a multiple of dim
            },
            "graph": {
                "encoder": "ultragcn",  # of CREATE; lightgcn, signed, hypergraph, none
                "batch_size": 2048,  # pairs a step (26)
                "batch_source": "edges",  # or batch_users (14; not of ultragcn)
                "last_n": 0,  # each user's last N rows; 0 = all (19)
                "last_frac": 1.0,  # each user's last share of rows (19)
                "reduce": "mean",  # or sum, over the pairs of a step (10)
                "lightgcn": {
                    "layers": 2,
                    "l2": 1e-4,
                    "loss": "bpr",  # or alignment_uniformity (GSAU)
                    "gamma": 0.1,  # of the uniformity
                    "normalise": False,  # layers of unit length (MRGSRec)
                },
                "ultragcn": {
                    "w1": 1e-7,
                    "w2": 1.0,
                    "w3": 1e-7,
                    "w4": 1.0,
                    "negatives": 200,
                    "shared_negatives": True,  # by all pairs of a step
                    "negative_weight": 5.0,
                    "neighbours": 10,
                    "item_weight": 2.75,  # lambda of L_I, as published for Amazon books
                    "norm_weight": 1e-4,  # gamma
                },
                "signed": {  # CREATE-Pone
                    "layers": 2,
                    "liked_from": 4.0,  # the lowest rating that is a like
                    "averse_weight": 1.0,  # b, of disliked items
                    "contrastive": 0.1,  # weight of L_CL
                    "temperature": 1.0,
                },
                "hypergraph": {  # CREATE-Uni
                    "layers": 2,
                    "window_hours": 168.0,
                    "convolution": "gcn",  # gin, gat: UniGCN, UniGIN, UniGAT
                    "l2": 1e-4,
                },
                "selfgnn": {
                    "intervals": 4,
                    "layers": 2,
                    "self_weight": 0.002,
                    "decay": 1e-2,
                },
            },
            "svd": {
                "ranks": (16, 32, 64, 128, 256, 512),  # the best on validation is used
                "power": 1.0,  # p of EigenRec's column scaling; 1 = PureSVD
                "history": "train",  # the user's row; full: all before the target
            },
            "item_source": {"input": "ego", "output": "ego"},  # or propagated (3, 4)
            "align": {
                "kind": "barlow_twins",  # infonce, vicreg, nwj, none (31)
                "partner": "graph",  # or same_target: BT-SR's second sequence
                "positions": "last",  # or all (1)
                "user_source": "propagated",  # or ego (2)
                "stop_grad": "none",  # global, local (11)
                "projector_dims": (),  # (12)
                "l2_normalize": False,  # (13)
                "bert_state": "appended_mask",  # or last_position (32)
                "temperature": 1.0,  # of infonce and nwj (31)
                "bt": {"lambda": 0.05, "reduce": "mean_dim"},  # (6, 5)
                "orthogonality": 1.0,  # mu, of h_u and a signed graph's disinterest
                "vicreg": {"similarity": 25.0, "variance": 25.0, "covariance": 1.0},
            },
            "loss": {
                "local": "ce",  # sce, sampled, gbce, bce, gsau (30)
                "negatives": 256,  # of sampled, gbce and bce
                "shared_negatives": True,  # by the tokens of a row
                "gbce_t": 0.75,
                "gsau": {"gamma": 0.1, "rec": False},
                "sce": {  # n_b, b_x, b_y and a rule: docs/models.md#sce
                    "buckets": 100,
                    "bucket_states": 100,
                    "bucket_items": 256,
                    "mix": True,
                },
                "w_global": 0.1,  # (8)
                "w_fused": 0.5,  # of mrgsrec's fused user
                "w_bt": 0.2,  # of the alignment, whichever kind (7)
                "token_chunk": 512,  # tokens whose logits exist at once
                "whole_items": 131072,  # a larger catalogue is scored in parts,
                "item_chunk": 4096,  # of so many items
            },
            # causal: the published user token (leaky) shows items their next ones.
            "mrgsrec": {"user_token_mask": "causal"},
            "warmup": {
                "epochs": 10,  # of the graph alone (15)
                "reset_optimizer": False,  # of the tables at the switch (17)
                "eval": "graph",  # score with the graph, or sequential (18)
            },
            "train": {
                "batch": 256,  # sequences a step; some more for equal dispatches (26)
                "mask": 0.2,  # share of items that bert4rec hides
                "epochs": 300,  # after warm-up, at most (27)
                "patience": 10,  # validations without a better one (27)
                "chunk": 64,  # most steps of a dispatch; a small one makes steps larger
            },
            "retrain": {"epochs": "best"},  # scaled: by rows; none (28)
            # all: at the end once more on every row, test rows too, for --mode=export.
            "final": {"fit": "none"},
            "optim": {  # (25)
                "lr": 1e-3,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "clip": 0.0,  # most norm of a gradient, of each group; 0 = any
            },
            # --mode=tune: (setting, "log", low, high), "uniform", "integer" likewise,
            # or (setting, "choice", value, ...); the first trial is the config itself.
            "tune": {
                "trials": 20,
                "space": methods.SEARCH,
            },
            "mesh": {"model": 1},  # devices that share the rows of a table
            "checkpoint": {"seconds": 30.0},  # between saves, at least
            "example": False,  # show the top ten of one real history at the end
        }
    )
    defaults = methods.find(config.method).defaults
    config.update_from_flattened_dict(defaults)
    return config
