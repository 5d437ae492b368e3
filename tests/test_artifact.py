"""The file of a trained model: round trips, and what is none of ours is refused."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

from create_jax import artifact
from create_jax.artifact import Artifact, Texts, Users
from create_jax.errors import InputError
from create_jax.search import nearest

TITLES = ["", "Matrix, The (1999)", "Good, the Bad and the Ugly, The (1966)", "Été", ""]


def make(**changes) -> Artifact:
    """Four items of two dimensions, the last never trained."""
    rng = np.random.default_rng(0)
    made = Artifact(
        manifest={"method": "sasrec", "query": "encoder"},
        items=rng.normal(size=(5, 2)).astype(np.float32),
        ids=Texts.of(["", "b", "a", "ü", "z"]),
        counts=np.array([0, 3, 2, 1, 0]),
        titles=Texts.of(TITLES),
        inputs=rng.normal(size=(5, 2)).astype(np.float32),
        parameters={"sequence": {"norm": {"scale": np.ones(2, np.float32)}}},
        users=Users(
            Texts.of(["u", "v"]),
            rng.normal(size=(2, 2)).astype(np.float32),
            np.array([0, 1, 3]),
            np.array([1, 2, 3], np.int32),
        ),
        program=b"\x00program",
    )
    return replace(made, **changes)


def test_what_is_written_is_read(tmp_path):
    made, path = make(), tmp_path / "new" / "model.safetensors"
    digest = artifact.write(path, made)
    found = artifact.read(path)
    assert found.hash == digest and len(digest) == 64
    assert found.manifest == made.manifest | {"format": artifact.FORMAT}
    for name in ("items", "counts", "inputs"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    assert list(found.ids) == ["", "b", "a", "ü", "z"] and list(found.titles) == TITLES
    scale = found.parameters["sequence"]["norm"]["scale"]
    np.testing.assert_array_equal(scale, np.ones(2))
    assert found.program == made.program
    assert list(found.users.ids) == ["u", "v"]
    np.testing.assert_array_equal(found.users.vectors, made.users.vectors)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert artifact.write(path, found) == digest  # over itself, as it is read
    small = replace(made, titles=None, inputs=None, users=None, program=None)
    artifact.write(path, small)
    found = artifact.read(path)
    assert (found.titles, found.inputs, found.users, found.program) == (None,) * 4


def test_the_hash_is_of_all_of_it(tmp_path):
    path, made = tmp_path / "a.safetensors", make()
    counts = made.counts + 1
    others = [
        make(),
        make(manifest=made.manifest | {"seed": 1}),
        make(items=made.items + 1),
        make(ids=Texts.of(["", "b", "a", "ü", "y"])),
        make(counts=counts),
        make(parameters={"sequence": {"bias": np.ones(2, np.float32)}}),
        make(program=b"other"),
    ]
    assert len({artifact.write(path, one) for one in others}) == len(others)


def test_names_lead_to_codes():
    texts = Texts.of(["", "b", "a", "ü", "a"])
    assert [texts.code_of(t) for t in ("a", "b", "ü", "", "c")] == [2, 1, 3, None, None]
    assert texts.codes_of("a") == [2, 4] and texts[-1] == "a" and len(texts) == 5
    titles = Texts.of(TITLES)
    assert nearest(titles, "the matrix")[0] == 1
    assert nearest(titles, "good the bad and the ugly")[0] == 2
    assert nearest(titles, "zzzz") == [] and nearest(titles, "") == []
    assert nearest(Texts.of([]), "a") == []
    made = make()
    assert [made.name(code) for code in (1, 4)] == ["Matrix, The (1999)", "z"]


@pytest.mark.parametrize("place", ["header", "middle", "end", "nothing"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, place):
    path = tmp_path / "a.safetensors"
    artifact.write(path, make())
    whole = path.read_bytes()
    size = {"header": 100, "middle": len(whole) // 2, "end": len(whole) - 1}
    path.write_bytes(whole[: size.get(place, 0)])
    with pytest.raises(InputError, match="cut off.*copy it anew"):
        artifact.read(path)


def test_any_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    artifact.write(path, make())
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        try:
            found = artifact.read(path)
        except InputError as error:
            assert "\n" not in str(error)
        else:  # a name in the header that no part reads, or spaces at its end
            same = np.array_equal(found.items, make().items)
            assert same and found.manifest["method"] == "sasrec", place


def test_what_is_none_of_ours_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="is a directory; .*--mode=export"):
        artifact.read(tmp_path)
    with pytest.raises(InputError, match="check the path"):
        artifact.read(path)
    path.write_text("no tensors " * 100)
    with pytest.raises(InputError, match="is no safetensors file"):
        artifact.read(path)
    safetensors.numpy.save_file({"a": np.ones(3)}, path)
    with pytest.raises(InputError, match="something else"):
        artifact.read(path)
    few = {"a": np.ones(3, np.float32)}
    safetensors.numpy.save_file(few, path, {"create_jax": "{"})
    with pytest.raises(InputError, match="damaged"):
        artifact.read(path)
    newer = {"create_jax": json.dumps({"format": artifact.FORMAT + 1}), "sha256": ""}
    safetensors.numpy.save_file(few, path, newer)
    with pytest.raises(InputError, match="update create_jax"):
        artifact.read(path)


@pytest.mark.parametrize(
    "part, reason",
    [
        ({"counts": np.ones(4, np.int64)}, "5 rows of items and 4 of counts"),
        ({"items": np.ones((5, 2), np.int64)}, "no matrix of float32"),
        ({"items": np.ones(5, np.float32)}, "no matrix of float32"),
        ({"titles": Texts.of(["a"])}, "1 of titles"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, part, reason):
    path = tmp_path / "a.safetensors"
    artifact.write(path, make(**part))
    with pytest.raises(InputError, match=reason):
        artifact.read(path)


def test_a_file_is_mapped_and_knows_no_jax(tmp_path):
    path = tmp_path / "a.safetensors"
    artifact.write(path, make())
    code = (
        "import sys; from create_jax import artifact; "
        f"found = artifact.read({str(path)!r}); "
        "assert not found.items.flags.owndata and not found.items.flags.writeable; "
        "assert 'jax' not in sys.modules and 'polars' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
