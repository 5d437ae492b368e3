"""Your own log: csv, tsv, any separator, JSON lines (plain, .gz or .zst) or Parquet.

python -m create_jax.main --config=table --config.data.path=log.csv.gz

Say what your columns are called, here or on the command line:
--config.data.table.columns.user=uid --config.data.table.columns.item=sku ...
"""

from create_jax.configs import common


def get_config(method: str | None = None):
    return common.get_config(method)
