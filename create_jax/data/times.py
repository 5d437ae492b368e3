"""Times of any form as whole seconds and nanoseconds, both exact.

Numbers since 1970 in s, ms, us or ns; ISO dates and times; dates written as numbers
(20170820); or anything that sorts, where times only give an order.
"""

from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Decimal
from typing import Literal

import polars as pl

Unit = Literal["auto", "s", "ms", "us", "ns", "iso"]

NANO = 10**9
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": NANO}
WORDS = {
    "iso": "an ISO date",
    "digits": "a date as a number (20170820)",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
}
YEAR = 365 * 86_400
# Numbers that can only be dates: as seconds or milliseconds they would lie in one month
# of 1970, in 1976 or after 2500.
DIGITS = (6, 8, 12, 14)  # of YYYYMM[DD[hhmm[ss]]]
ISO = (
    r"^([12][0-9]{3})[-/]([0-9]{1,2})[-/]([0-9]{1,2})"
    r"(?:(?:T|t| +)([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]+))?)?)?"
    r" *([+-][0-9]{2}(?::?[0-9]{2})?)? *(?i:Z|UTC|GMT)?$"
)


def guess_unit(times: pl.Series) -> str:
    """s, ms, us or ns by the size of the numbers; digits for dates as numbers; iso."""
    if times.dtype.is_temporal():
        return "iso"
    known = times.drop_nulls()
    if known.dtype == pl.String:
        known = known.str.strip_chars()
    numbers = known.cast(pl.Float64, strict=False).drop_nulls()
    if 2 * len(numbers) <= len(known):
        return "iso"
    middle = abs(numbers.filter(numbers.is_finite()).median() or 0)
    if len(f"{middle:.0f}") in DIGITS:
        dates = parse(times, "digits")["seconds"]
        if 2 * dates.count() > len(known):
            return "digits"
    # 1e11 s is the year 5138, and 1e11 ms is 1973. The other limits follow likewise.
    return ["s", "ms", "us", "ns"][sum(middle > limit for limit in (1e11, 1e14, 1e17))]


def parse(times: pl.Series, unit: str) -> pl.DataFrame:
    """seconds (Int64, rounded down) and nanos (Int64, 0 .. 1e9 - 1) since 1970 in UTC,
    null where a time does not parse. Finer parts than nanoseconds are cut off."""
    if times.dtype == pl.Date:
        seconds = times.to_physical().cast(pl.Int64) * 86_400
        return _pair(seconds, pl.repeat(0, len(times), dtype=pl.Int64, eager=True))
    if times.dtype.is_temporal():
        return _split(times.to_physical(), 0, PER_SECOND[times.dtype.time_unit])
    if unit == "iso":
        return _iso(times.cast(pl.String).str.strip_chars())
    whole, nanos = _numbers(times)
    if unit == "digits":
        return _iso(_as_iso(whole))
    return _split(whole, nanos, PER_SECOND[unit])


def order(times: pl.Series) -> pl.Series:
    """Numbers of any sign that sort: Int128, or Float64 if some are not whole; null
    where one does not parse."""
    if times.dtype.is_temporal():
        return times.to_physical().cast(pl.Int128)
    if not times.dtype.is_integer():
        text = times.cast(pl.String).str.strip_chars()
        whole = text.cast(pl.Int128, strict=False)
        if (whole.is_null() & times.is_not_null()).any():
            numbers = text.cast(pl.Float64, strict=False)
            return numbers.set(~numbers.is_finite(), None)
        return whole
    return times.cast(pl.Int128)


def ranks(parts: list[pl.Series]) -> pl.Series:
    """The output of `order` as one column of Int64: the numbers if they are whole and
    fit, else their ranks."""
    if all(part.dtype == pl.Int128 for part in parts):
        numbers = pl.concat(parts)
    else:
        numbers = pl.concat([part.cast(pl.Float64) for part in parts])
    whole = numbers.cast(pl.Int64, strict=False)
    if whole.null_count() or (whole.cast(numbers.dtype) != numbers).any():
        return numbers.rank("dense").cast(pl.Int64)
    return whole


def _pair(seconds: pl.Series, nanos: pl.Series) -> pl.DataFrame:
    return pl.DataFrame({"seconds": seconds, "nanos": nanos})


def _split(whole: pl.Series, nanos: pl.Series | int, per_second: int) -> pl.DataFrame:
    """From whole units and the rest, in billionths of a unit."""
    part = whole % per_second * (NANO // per_second) + nanos // per_second
    return _pair(whole // per_second, part)


def _numbers(times: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The whole part, rounded down, and the rest in billionths; exact."""
    if times.dtype.is_float():  # as text of the fewest digits that name the number
        times = times.cast(pl.Float64)
    zeros = pl.repeat(0, len(times), dtype=pl.Int64, eager=True)
    if times.dtype.is_integer():
        return times.cast(pl.Int64, strict=False), zeros
    text = times.cast(pl.String).str.strip_chars()
    whole = text.cast(pl.Int64, strict=False)
    if not (whole.is_null() & text.is_not_null()).any():
        return whole, zeros
    parts = text.str.extract_groups(r"^([+-]?[0-9]*)\.([0-9]*)$").struct.unnest()
    parts.columns = ["whole", "rest"]
    billionths = (
        pl.when(pl.col("rest") == "")
        .then(pl.lit("0"))
        .otherwise(pl.col("rest"))
        .str.slice(0, 9)
        .str.pad_end(9, "0")
        .cast(pl.Int64, strict=False)
    )
    number = pl.col("whole").cast(pl.Int64, strict=False)
    below = pl.col("whole").str.starts_with("-") & (billionths > 0)
    parts = parts.select(
        whole=number - below.cast(pl.Int64),
        nanos=pl.when(below).then(NANO - billionths).otherwise(billionths),
    )
    whole = whole.fill_null(parts["whole"])
    nanos = parts["nanos"].fill_null(0)
    powers = whole.is_null() & text.str.contains(r"^[+-]?[0-9.]+[eE][+-]?[0-9]+$")
    return _replaced(whole, nanos, text, powers, _power_of_ten)


def _replaced(whole, nanos, text, mask, read) -> tuple[pl.Series, pl.Series]:
    """Both columns, with what `read` makes of a text where the mask holds."""
    rows = mask.fill_null(False).arg_true()
    if not len(rows):
        return whole, nanos
    found = [read(t) for t in text.gather(rows)]
    return (
        whole.scatter(rows, [whole for whole, _ in found]),
        nanos.scatter(rows, [rest for _, rest in found]),
    )


def _power_of_ten(text: str) -> tuple[int | None, int]:
    try:
        number = Decimal(text)
    except ArithmeticError:
        return None, 0
    if not -30 < number.adjusted() < 18:
        return None, 0
    return divmod(int(number.scaleb(9).to_integral_value(ROUND_FLOOR)), NANO)


def _as_iso(numbers: pl.Series) -> pl.Series:
    """20170820[1831[36]] -> 2017-08-20 18:31:36, null for other lengths."""
    text = numbers.cast(pl.String)
    right = text.str.len_chars().is_in(DIGITS)
    full = text + pl.Series(["01000000"])
    digits = pl.select(pl.when(text.str.len_chars() == 6).then(full).otherwise(text))
    return (
        digits.to_series()
        .str.pad_end(14, "0")
        .str.replace(r"^(....)(..)(..)(..)(..)(..)$", "$1-$2-$3 $4:$5:$6")
        .set(~right.fill_null(True), None)
    )


def _iso(text: pl.Series) -> pl.DataFrame:
    names = ["year", "month", "day", "hour", "minute", "second", "rest", "zone"]
    parts = text.str.extract_groups(ISO).struct.unnest()
    parts.columns = names
    day = pl.concat_str("year", "month", "day", separator="-").str.to_date(
        "%Y-%m-%d", strict=False
    )
    clock = [pl.col(name).cast(pl.Int64).fill_null(0) for name in names[3:6]]
    hour, minute, second = clock
    valid = (hour < 24) & (minute < 60) & (second < 60)
    digits = pl.col("zone").str.replace_all(r"[^0-9]", "").str.pad_end(4, "0")
    hours, minutes = (
        digits.str.slice(at, 2).cast(pl.Int64, strict=False).fill_null(0)
        for at in (0, 2)
    )
    valid &= (hours < 24) & (minutes < 60)
    offset = hours * 3600 + minutes * 60
    offset = (
        pl.when(pl.col("zone").str.starts_with("-")).then(-offset).otherwise(offset)
    )
    moment = day.cast(pl.Int32).cast(pl.Int64) * 86_400
    moment += hour * 3600 + minute * 60 + second - offset
    nanos = pl.col("rest").str.slice(0, 9).str.pad_end(9, "0").cast(pl.Int64)
    found = parts.select(seconds=pl.when(valid).then(moment), nanos=nanos.fill_null(0))
    rare = found["seconds"].is_null() & text.is_not_null()
    return _pair(*_replaced(*found, text, rare, _rare_iso))


def _rare_iso(text: str) -> tuple[int | None, int]:
    """A week date, a basic form: as Python reads it."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None, 0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * 86_400 + since.seconds, since.microseconds * 1000
