"""Summaries by a model: the `Summarizer` that asks one.

    Material ─ quoting ─> lines ─ fit the window ──────────────> one question ─> text, checked
                            └ don't ─ map_reduce ─> parts ─> a question each ─> merged ┘

What a summary costs at most is known before: each question says where the model is to stop.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Final, TypeVar, get_args

import msgspec

from eventlog.compaction.summarizer import Material, Summary, SummaryFailed
from eventlog.compaction.tokens import count_text
from eventlog.compaction.windows import window_of
from eventlog.errors import InvalidSetting
from workers.summariser.answers import Api
from workers.summariser.client import ModelClient, Question
from workers.summariser.map_reduce import Line, Part, Piece, Ruler, cut, group
from workers.summariser.patience import Pause, Tally, ask_patiently
from workers.summariser.prompts import Task, prompt_version, reminder, system_prompt
from workers.summariser.quoting import Document, clip, fenced

WINDOW_TOKENS_UNKNOWN: Final = 8_192
"""Taken for the window of a model that isn't known; a setting says better."""
WINDOW_TOKENS_MIN: Final = 2_048
"""With less there is no room for the prompt, some messages and an answer."""
THOUGHT_TOKENS_MAX: Final = 16_384
"""What a model may think before it writes, in tokens; the limit of its answer includes that."""
FRAME_TOKENS: Final = 80
"""What the two messages take beside their lines: the fence, roles, marks of the template."""
PARTS_AT_ONCE: Final = 4
"""Questions of one summary that are under way at once."""
PARTS_MAX: Final = 1_000
"""Material that would need more parts is refused: the model is too small for it."""
WISH_LENGTH_MAX: Final = 2_000
"""Characters of what whoever asked wants to have kept in mind."""


_Given = TypeVar("_Given")


class _Room(msgspec.Struct, frozen=True, kw_only=True):
    """How the window is divided, in tokens."""

    answer: int
    lines: int
    """What all lines of a question may take together."""
    head: list[Line]
    """Lines that go with every question."""
    part_summary: int
    """How long the summary of a part should be at most."""


class ModelSummarizer:
    """Asks a model for summaries. `aclose()` it, or use it in `async with`.

    `model` is asked at `base_url` (None: OpenAI's, or `OPENAI_BASE_URL`) through `api`.
    `window_tokens` is how much it can read and write at once; None: what is known of it.
    `timeout_seconds` bounds each answer, from first byte to last.
    """

    def __init__(
        self,
        *,
        model: str,
        key: str | None = None,
        base_url: str | None = None,
        api: Api = "chat",
        window_tokens: int | None = None,
        timeout_seconds: float = 120.0,
        pause: Pause = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._window = window_tokens or window_of(model) or WINDOW_TOKENS_UNKNOWN
        if self._window < WINDOW_TOKENS_MIN:
            raise InvalidSetting(
                f"EVENTLOG_COMPACTION_WINDOW_TOKENS is {self._window:,}; a model that writes "
                f"summaries must read at least {WINDOW_TOKENS_MIN:,} tokens"
            )
        self.model = model
        self._client = ModelClient(
            model=model, base_url=base_url, key=key, api=api, timeout_seconds=timeout_seconds
        )
        self._pause = pause
        self._chance = chance

    async def summarize(self, material: Material) -> Summary:
        """Ask for a summary, in as many questions as it takes. Raises `SummaryFailed`."""
        writing = _Writing(self._client, material, self._window, self._pause, self._chance)
        try:
            text = await writing.write()
            tokens = count_text(text, self.model).tokens
            if tokens >= material.tokens:
                raise SummaryFailed(
                    "not_smaller",
                    f"the summary has {tokens:,} tokens, and what it would replace "
                    f"{material.tokens:,}",
                )
        except SummaryFailed as failure:
            raise writing.tally.onto(failure) from None
        return Summary(
            text=text,
            method="model",
            model=self.model,
            prompt_version=prompt_version(),
            usage=writing.tally.usage,
            calls=writing.tally.calls,
        )

    async def aclose(self) -> None:
        """Close the connections to the endpoint."""
        await self._client.aclose()


class _Writing:
    """The questions of one summary."""

    def __init__(
        self,
        client: ModelClient,
        material: Material,
        window_tokens: int,
        pause: Pause,
        chance: Callable[[], float],
    ) -> None:
        self.tally = Tally()
        self._client = client
        self._material = material
        self._pause = pause
        self._chance = chance
        self._ruler = Ruler(client.model)
        self._nonce = secrets.token_hex(8)
        self._room = self._divide(window_tokens)
        self._at_once = asyncio.Semaphore(PARTS_AT_ONCE)

    async def write(self) -> str:
        """The text of the summary. Raises `SummaryFailed`; what it cost is in `tally`."""
        material = self._material
        room = self._room.lines
        lines = await asyncio.to_thread(  # of a large context it takes a while
            self._ruler.messages, material.messages, material.unanswered, room
        )
        previous = [Piece(material.previous_summary)] if material.previous_summary else []
        whole = [self._ruler.line(each.document(len(each.text))) for each in previous]
        whole += [line for _, line in lines]
        if sum(line.tokens for line in whole) <= room:
            task: Task = "update" if previous else "first"
            return await self._ask(task, whole, material.tokens_max)
        parts = list(cut(lines, room))
        if len(parts) > PARTS_MAX:
            raise SummaryFailed(
                "rejected",
                f"the model's window is too small: it would take {len(parts):,} parts, "
                f"at most {PARTS_MAX:,}",
            )
        return await self._merge([*previous, *await self._in_parallel(self._part, parts)])

    async def _part(self, part: Part) -> Piece:
        text = await self._ask("part", part.lines, self._room.part_summary)
        return Piece(text, part.from_seq, part.to_seq)

    async def _merge(self, pieces: list[Piece]) -> str:
        """One summary out of many, in as many rounds as it takes."""
        while len(groups := group(pieces, self._ruler, self._room.lines)) > 1:
            pieces = await self._in_parallel(self._merge_some, groups)
        lines = [line for _, line in groups[0]]
        return await self._ask("merge", lines, self._material.tokens_max)

    async def _merge_some(self, pieces: list[tuple[Piece, Line]]) -> Piece:
        first, last = pieces[0][0], pieces[-1][0]
        if len(pieces) == 1:
            return first
        lines = [line for _, line in pieces]
        text = await self._ask("merge", lines, self._room.part_summary)
        return Piece(text, first.from_seq, last.to_seq)

    async def _in_parallel(
        self, work: Callable[[_Given], Coroutine[None, None, Piece]], given: Sequence[_Given]
    ) -> list[Piece]:
        """All of them, in order. The first that fails ends the others."""
        tasks = [asyncio.create_task(work(each)) for each in given]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _divide(self, window_tokens: int) -> _Room:
        """Divide the window: the answer, the prompt, what goes with every question, the rest."""
        material = self._material
        answer = min(material.tokens_max * 2 + THOUGHT_TOKENS_MAX, window_tokens // 3)
        tasks: tuple[Task, ...] = get_args(Task)
        nonce, widest = self._nonce, 9_999
        prompt = self._ruler.tokens(reminder(nonce=nonce, tokens_max=widest)) + max(
            self._ruler.tokens(system_prompt(task, nonce=nonce, tokens_max=widest))
            for task in tasks
        )
        rest = window_tokens - answer - prompt - FRAME_TOKENS
        head = [line for make in self._extras() if (line := self._ruler.fit(make, rest // 8))]
        rest -= sum(line.tokens for line in head)
        return _Room(
            answer=answer, lines=rest, head=head, part_summary=min(material.tokens_max, rest // 4)
        )

    def _extras(self) -> list[Callable[[int], Document]]:
        """What goes with every question, as documents whose texts can be clipped."""
        facts, wish = self._material.facts, self._material.instructions
        extras: list[Callable[[int], Document]] = []
        if facts:
            extras.append(
                lambda length: {
                    "kind": "facts",
                    "facts": {
                        clip(name, length): clip(text, length) for name, text in facts.items()
                    },
                }
            )
        if wish:
            extras.append(
                lambda length: {"kind": "wish", "text": clip(wish, min(length, WISH_LENGTH_MAX))}
            )
        return extras

    async def _ask(self, task: Task, lines: Sequence[Line], tokens_max: int) -> str:
        data = fenced([line.text for line in (*self._room.head, *lines)], self._nonce)
        last_word = reminder(nonce=self._nonce, tokens_max=tokens_max)
        question = Question(
            system=system_prompt(task, nonce=self._nonce, tokens_max=tokens_max),
            user=f"{data}\n\n{last_word}",
            answer_tokens_max=self._room.answer,
        )
        async with self._at_once:
            text = await ask_patiently(
                self._client, question, self.tally, pause=self._pause, chance=self._chance
            )
        if self._nonce in text:
            raise SummaryFailed("bad_answer", "the model repeated the data and summarised nothing")
        return text
