"""Orbax checkpoints of one stage of a run: the latest two, and the best, kept apart."""

import copy
import sys
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from create_jax.errors import InputError


class Checkpoints:
    """Saves (state arrays, progress JSON) by step; saving runs in the background.

    Two latest are kept, so that a damaged one (a full disk, a kill inside a copy) costs
    minutes and not the run.
    """

    def __init__(self, directory: Path):
        def score(metrics):
            return metrics["score"]

        self.directory = directory
        self.manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(
                    [LatestN(2), BestN(get_metric_fn=score, n=1)]
                ),
                best_fn=score,
            ),
        )

    def save(self, step: int, state, progress: dict, score: float) -> None:
        """Args: score: the validation metric of this very step, -1 where none."""
        if step in self.manager.all_steps():
            return
        try:
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    # The loop goes on changing its own while this is written.
                    progress=ocp.args.JsonSave(copy.deepcopy(progress)),
                ),
                metrics={"score": score},
            )
        except OSError as error:
            raise _cannot_save(self.directory, error) from None

    def wait(self) -> None:
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # the background thread's own error, of many types
            raise _cannot_save(self.directory, error) from None

    def close(self) -> None:
        self.wait()
        self.manager.close()

    def restore_latest(self, like):
        """(state, progress) of the newest readable checkpoint, or None.

        Args:
          like: a state of the same shapes, placed as the restored one shall be.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                return self._restore(step, like)
            except Exception as error:  # orbax raises many types for damaged files
                print(
                    f"warning: checkpoint {self.directory / str(step)} is damaged "
                    f"({_reason(error)}); continuing from the one before",
                    file=sys.stderr,
                )
                self.manager.delete(step)
        return None

    def restore_best(self, like):
        """(state, progress) with the best validation score, or None."""
        step = self.manager.best_step()
        return None if step is None else self._restore(step, like)

    def _restore(self, step, like):
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self.manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract),
                progress=ocp.args.JsonRestore(),
            ),
        )
        return restored["state"], restored["progress"]


def _cannot_save(directory, error):
    return InputError(
        f"{directory}: the checkpoint could not be saved ({_reason(error)}); once that "
        "is mended, often by freeing space, the same command goes on from the last one"
    )


def _reason(error):
    """The end of the first line: what went wrong, after where."""
    line = (str(error) or repr(error)).splitlines()[0]
    return line.rsplit(": ", 1)[-1][:200]
