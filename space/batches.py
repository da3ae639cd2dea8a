"""Images of many people through the network together."""

from __future__ import annotations

from concurrent.futures import Future
from itertools import groupby
from queue import Queue
from threading import Thread
from typing import NamedTuple

from PIL import Image

from space.predictor import BATCH, Answer, Predictor


class Waiting(NamedTuple):
    """An image that waits for its answer, and how it is to be explained."""

    image: Image.Image
    method: str | None
    label: int | None
    answer: Future

    @property
    def way(self) -> tuple[str, int]:
        return self.method or "", -1 if self.label is None else self.label


class Batches:
    """Answers single images from any number of threads: those that wait at the same time make one batch.

    One thread runs the network, so that its own threads have all cores; whoever asks decodes and draws meanwhile.
    """

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self._waiting: Queue[Waiting] = Queue()
        Thread(target=self._work, daemon=True, name="network").start()

    def answer(self, image: Image.Image, method: str | None = None, label: int | None = None) -> Answer:
        """`Predictor.answer` for one RGB image."""
        waiting = Waiting(image, method, label, Future())
        self._waiting.put(waiting)
        return waiting.answer.result()

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get())
            for _, alike in groupby(sorted(batch, key=lambda each: each.way), key=lambda each: each.way):
                self._answer(list(alike))

    def _answer(self, batch: list[Waiting]) -> None:
        try:
            answers = self.predictor.answer([each.image for each in batch], batch[0].method, batch[0].label)
        except Exception as error:  # the thread has to go on for all others
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
            else:
                for each in batch:
                    self._answer([each])
            return
        for each, answer in zip(batch, answers, strict=True):
            each.answer.set_result(answer)
