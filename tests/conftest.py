"""CPU with eight simulated devices, chosen before JAX wakes."""

import multiprocessing
import os
from importlib import metadata

os.environ["JAX_PLATFORMS"] = "cpu"
# Without the newer emitters the same mathematics compiles in half the time, and in one
# part a tenth faster again. A later jaxlib ends at a flag that it does not know.
KNOWS_EMITTERS = metadata.version("jaxlib").startswith("0.10.")
EMITTERS = "--xla_cpu_use_fusion_emitters=false"
PARTS = "--xla_cpu_parallel_codegen_split_count=1"
FAST = f"{EMITTERS} {PARTS}" if KNOWS_EMITTERS else ""
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {FAST}"

import jax  # noqa: E402
import pytest  # noqa: E402

# Files whose tests compile most; begun first, two processes end together.
LONGEST = ["resume", "end_to_end", "steps", "main", "graph_encoders", "mrgsrec"]
LONGEST += ["models", "encoders", "losses"]


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="module", autouse=True)
def compile_in_less_time():
    """The same mathematics; what compares the bits of two programs asks for
    `as_users_compile`."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def as_users_compile(compile_in_less_time):
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def fork():
    """Processes with fresh flags, forked from one that has all of this imported."""
    context = multiprocessing.get_context("forkserver")
    modules = "create_jax.main", "create_jax.experiment", "matplotlib.figure"
    context.set_forkserver_preload(list(modules))
    return context.Process


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield
