"""CPU with eight simulated devices, chosen before JAX wakes."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

# Files whose tests compile most; begun first, two processes end together.
LONGEST = ["resume", "steps", "end_to_end", "encoders", "main", "models", "losses"]


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)
