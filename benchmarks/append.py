"""Append: 64 sessions, each awaiting every message of 200 bytes, against the yardstick.

Project and yardstick take turns on the same servers, each in its own database. A round ends when
everything acknowledged is also in Redis, and CPU is counted until then: client, Postgres, Redis.
"""

from __future__ import annotations

from benchmarks import project, yardstick
from benchmarks.cpu import CpuMeter
from benchmarks.load import AppendRound, append_round
from benchmarks.measure import (
    Bench,
    Case,
    Result,
    alternate,
    at_least,
    at_most,
    median,
    median_ratio,
    shown,
)
from benchmarks.yardstick import MESSAGE_SESSIONS

CASE = "append"


async def run(bench: Bench) -> list[Result]:
    """Rounds of both, in turns; the targets are medians of the rounds' ratios."""
    seconds = bench.pick(4, 1)
    async with (
        bench.place.fresh() as own_ground,
        bench.place.fresh() as bare_ground,
        project.new_log(own_ground) as log,
        yardstick.running(bare_ground) as bare,
    ):
        sessions = await project.new_sessions(log, MESSAGE_SESSIONS)
        own_meter = CpuMeter(own_ground.connection, own_ground.redis, own_ground.database)
        bare_meter = CpuMeter(bare_ground.connection, bare_ground.redis, bare_ground.database)
        await own_meter.start()
        await bare_meter.start()

        async def append(index: int) -> None:
            await sessions[index].append(project.message())

        async def published() -> None:
            await project.published(own_ground)

        async def own_round() -> AppendRound:
            found = await append_round(
                append, published, own_meter, sessions=MESSAGE_SESSIONS, seconds=seconds
            )
            bench.say(f"project    {found}")
            return found

        async def bare_round() -> AppendRound:
            found = await yardstick.message_round(bare, bare_meter, seconds=seconds)
            bench.say(f"yardstick  {found}")
            return found

        pairs = await alternate(own_round, bare_round, rounds=bench.count(7, 2))
    return _judge(pairs)


def _judge(pairs: list[tuple[AppendRound, AppendRound]]) -> list[Result]:
    own = [pair[0] for pair in pairs]
    bare = [pair[1] for pair in pairs]
    beside = (
        f"yardstick {median(r.per_second for r in bare):,.0f}/s, "
        f"p50/p99 {median(r.latency.p50 for r in bare):.1f}/"
        f"{median(r.latency.p99 for r in bare):.1f} ms, "
        f"CPU {_seconds(median(r.cpu_per_thousand for r in bare))}"
    )
    return [
        shown(CASE, "messages", median(r.per_second for r in own), "messages/s", note=beside),
        at_least(
            CASE,
            "rate ÷ yardstick",
            median_ratio(pairs, lambda r: r.per_second),
            "×",
            target=0.7,
        ),
        shown(CASE, "p50", median(r.latency.p50 for r in own), "ms"),
        shown(CASE, "p99", median(r.latency.p99 for r in own), "ms"),
        at_most(
            CASE, "p99 ÷ yardstick", median_ratio(pairs, lambda r: r.latency.p99), "×", target=3
        ),
        shown(
            CASE,
            "CPU per 1,000 messages",
            median(r.cpu_per_thousand for r in own),
            "s",
            note=f"project: {_middle(own).shares}; yardstick: {_middle(bare).shares}",
        ),
        at_most(
            CASE,
            "CPU ÷ yardstick",
            median_ratio(pairs, lambda r: r.cpu_per_thousand),
            "×",
            target=1.8,
        ),
        shown(
            CASE, "published after the last ack", median(r.publish_seconds * 1e3 for r in own), "ms"
        ),
    ]


def _middle(rounds: list[AppendRound]) -> AppendRound:
    """The round with the median CPU."""
    return sorted(rounds, key=lambda each: each.cpu_per_thousand or 0.0)[len(rounds) // 2]


def _seconds(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f} s per 1,000"


CASES = [
    Case(CASE, "64 sessions awaiting each 200-byte message, against the yardstick", run),
]
