"""MovieLens 1M (Harper and Konstan 2015): `UserID::MovieID::Rating::Timestamp`.

Every rating is a positive, whatever its stars. Many times tie. Tied rows keep the
order of the file. A quarter of the leave-one-out targets depend on that order.
"""

import zipfile
from pathlib import Path, PurePosixPath

from create_jax.data import table
from create_jax.data.interactions import Interactions
from create_jax.errors import InputError

FILE, TITLES = "ratings.dat", "movies.dat"
LAYOUT = {
    "columns": {"user": 0, "item": 1, "time": 3, "rating": 2},
    "separator": "::",
    "format": "csv",
    "header": False,
    "time_unit": "s",
}


def load(path: str, **filters) -> Interactions:
    """Loads `ratings.dat`, the zip or the directory that holds it; see `from_frame`."""
    return table.collect(stream(path), **filters)


def stream(path: str) -> table.Stream:
    """The same in blocks."""
    if Path(path).is_dir():
        found = sorted(Path(path).rglob(FILE))
        if not found:
            raise InputError(f"{path}: found no {FILE}; expected it here: unzip ml-1m")
        path = str(found[0])
    if Path(path).suffix != ".zip" or not Path(path).is_file():
        return table.stream(path, **LAYOUT)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path}: the file is cut off or damaged ({error}); "
            "expected a zip archive: fetch it again"
        ) from error
    inside = [name for name in names if PurePosixPath(name).name == FILE]
    if not inside:
        raise InputError(
            f"{path}: found {', '.join(names[:5]) or 'nothing'}; "
            f"expected {FILE}, in any folder: fetch ml-1m.zip again"
        )

    def opened():
        return zipfile.ZipFile(path).open(inside[0])

    source = f"{path}/{inside[0]}"
    return table.stream_from({source: opened}, source, **LAYOUT)


def titles(path: str) -> dict[str, str]:
    """The title and year of each movie by its id, from `movies.dat` in the zip or
    beside the ratings; empty where there is none."""
    place = Path(path)
    try:
        if place.suffix == ".zip":
            with zipfile.ZipFile(place) as archive:
                names = archive.namelist()
                names = [n for n in names if PurePosixPath(n).name == TITLES]
                data = archive.read(names[0]) if names else b""
        else:
            folder = place if place.is_dir() else place.parent
            found = sorted(folder.rglob(TITLES))
            data = found[0].read_bytes() if found else b""
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: {error}; expected the titles in {TITLES}") from error
    rows = (line.decode("latin-1").split("::") for line in data.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 3}
