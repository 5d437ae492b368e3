"""RePlay 0.22. `replay`: SasRec.from_params with its default transforms and loss, read
from Parquet files, trained and queried through Lightning.

`replay-best`: with all options of its reference that reduce padding: encoders by
buckets of similar length (LengthBucketedQueryEncoder), batches trimmed to their longest
history (TargetAwareAdaptiveTrimTransform, AdaptiveTrimTransform), and LogInCE, which
with one positive is the full softmax cross-entropy, with logits at real targets only.

RePlay also trains a user's first item, from padding; its tokens count these items.
"""

import logging
import warnings
from pathlib import Path

import lightning
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from lightning.pytorch.callbacks import LambdaCallback
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import (
    ParquetModule,
    TensorFeatureInfo,
    TensorFeatureSource,
    TensorSchema,
)
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import TorchTopItemsCallback
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.lightning.postprocessor import SeenItemsFilter
from replay.nn.loss import LogInCE
from replay.nn.sequential import LengthBucketedQueryEncoder, SasRec
from replay.nn.transform import (
    AdaptiveTrimTransform,
    TargetAwareAdaptiveTrimTransform,
)
from replay.nn.transform.template import make_default_sasrec_transforms

from benchmarks.speed.sides import worker

QUERIES = 256  # a step
BUCKETS = 4  # a batch
QUIET = dict(
    devices=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    limit_val_batches=0,
)


def make_schema(dim: int, n_items: int) -> TensorSchema:
    return TensorSchema(
        TensorFeatureInfo(
            "item_id",
            is_seq=True,
            feature_type=FeatureType.CATEGORICAL,
            embedding_dim=dim,
            padding_value=n_items,  # items from 0, padding after them
            cardinality=n_items,
            feature_hint=FeatureHint.ITEM_ID,
            feature_sources=[
                TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")
            ],
        )
    )


def ragged(items, owners) -> pa.ListArray:
    """A list of items for each owner, from 0."""
    starts = np.flatnonzero(np.diff(owners, prepend=-1, append=-1))
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(items - 1))


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    spec, data, ready = worker.start("replay-rec", "torch", "lightning", "numpy")
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    best, length = spec["side"] == "replay-best", spec["length"]
    folder = Path(spec["folder"])

    kept = worker.newest(data, length + 1)
    train = ragged(data.items[kept].astype(np.int64), data.users[kept])
    query, item = worker.query_rows(data)
    asked = ragged(item.astype(np.int64), query)
    longest = int((data.end - data.begin).max())
    numbers = pa.array(np.arange(len(data.targets)))
    tables = {
        "train": pa.table({"item_id": train}),
        "predict": pa.table({"query_id": numbers, "item_id": asked, "seen_ids": asked}),
    }
    paths = {name: str(folder / f"{name}.parquet") for name in tables}
    for name, table in tables.items():
        pyarrow.parquet.write_table(table, paths[name])

    def column(size):
        return {"shape": size, "padding": data.n_items}

    schema = make_schema(spec["dim"], data.n_items)
    transforms = make_default_sasrec_transforms(schema)
    if best:
        names = ["item_id", "positive_labels"]
        transforms["train"].insert(2, TargetAwareAdaptiveTrimTransform(names))
        transforms["predict"].insert(1, AdaptiveTrimTransform("item_id"))
    asked = {"item_id": column(length), "seen_ids": column(longest), "query_id": {}}
    metadata = {"train": {"item_id": column(length + 1)}, "predict": asked}
    common = metadata, transforms
    # A separate module, as a module belongs to the trainer that uses it.
    batches = ParquetModule(spec["batch"], *common, train_path=paths["train"])
    queries = ParquetModule(QUERIES, *common, predict_path=paths["predict"])

    model = SasRec.from_params(
        schema,
        embedding_dim=spec["dim"],
        num_heads=spec["heads"],
        num_blocks=spec["blocks"],
        max_sequence_length=length,
        dropout=spec["dropout"],
    )
    if best:
        model.loss = LogInCE(data.n_items)
        model.loss.logits_callback = model.get_logits
        size = -(-spec["batch"] // BUCKETS)
        model.body.encoder = LengthBucketedQueryEncoder(model.body.encoder, size)

    found = TorchTopItemsCallback(
        worker.TOP, "query_id", [SeenItemsFilter(data.n_items, "seen_ids")]
    )
    # A separate wrapper and trainer, as training is under way.
    wrapped = LightningModule(model)
    asking = lightning.Trainer(callbacks=[found], **QUIET)

    def evaluate():
        asking.predict(wrapped, datamodule=queries, return_predictions=False)
        numbers, items, _ = found.get_result()
        top = np.zeros((len(data.targets), worker.TOP), np.int64)
        top[numbers.numpy()] = items.numpy() + 1
        return top

    counts = np.bincount(data.users[kept])
    tokens = int(np.minimum(counts, length).sum())
    callbacks = worker.hooks(ready, data, tokens, evaluate)
    adam = OptimizerFactory(learning_rate=spec["lr"], betas=(0.9, spec["b2"]))
    trainer = lightning.Trainer(
        max_epochs=-1, callbacks=[LambdaCallback(**callbacks)], **QUIET
    )
    trainer.fit(LightningModule(model, adam), datamodule=batches)


if __name__ == "__main__":
    main()
