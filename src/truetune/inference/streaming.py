"""An answer's text while it is being said."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from queue import SimpleQueue
from threading import Event, Thread

from truetune.inference.decoding import Decoder, Row


def pieces(decoder: Decoder, row: Row) -> Iterator[str]:
    """The text in pieces that end up as the whole answer; the row is filled as by `together`.

    The model works in a thread of its own, and stops after its next token when the caller goes away.
    """
    said: SimpleQueue[Sequence[int] | BaseException | None] = SimpleQueue()
    has_gone = Event()

    def heard(ids: Sequence[int]) -> bool:
        said.put(ids)
        return has_gone.is_set()

    def work() -> None:
        try:
            replace(decoder, heard=heard).together([row])
            said.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever listens
            said.put(error)

    worker = Thread(target=work, name="truetune-stream", daemon=True)
    worker.start()
    shown = ""
    try:
        while (ids := said.get()) is not None:
            if isinstance(ids, BaseException):
                raise ids
            text = decoder.stops.settled(decoder.stops.text(ids))
            if len(text) > len(shown) and text.startswith(shown):
                yield text[len(shown) :]
                shown = text
        whole = decoder.stops.text(row.ids)
        if len(whole) > len(shown) and whole.startswith(shown):
            yield whole[len(shown) :]
    finally:
        has_gone.set()
        worker.join()
