import multiprocessing
import os
import time
from datetime import timedelta

from accelerate import PartialState
from torch import distributed

from training.processes import from_main_process, main_process_first


def test_the_others_wait_for_the_main_process_longer_than_for_each_other(tmp_path):
    def one_of_two(rank):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        store = distributed.FileStore(str(tmp_path / "store"), 2)
        limit = timedelta(seconds=2)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
        PartialState._reset_state()
        PartialState(cpu=True)
        told = from_main_process(lambda: time.sleep(3) or "told")
        with main_process_first():
            if rank == 0:
                time.sleep(3)
                (tmp_path / "made").touch()
            assert (tmp_path / "made").exists()
        (tmp_path / str(rank)).write_text(told)

    both = [multiprocessing.get_context("fork").Process(target=one_of_two, args=[rank]) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["told", "told"]
