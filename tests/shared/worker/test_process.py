import os

import psutil
import torch

from shared.broker import Broker
from shared.worker.process import describe_worker


def test_a_worker_tells_what_it_takes_and_keeps_its_own_name(broker: Broker) -> None:
    told = describe_worker(torch.device("cpu"), psutil.Process(os.getpid()))
    broker.workers.register("synthesis-host-1", told, ttl_seconds=60)
    (worker,) = broker.workers.all()
    assert worker["name"] == "synthesis-host-1"
    assert worker["device"] == "cpu"
    assert 1e6 < float(worker["process_memory_bytes"]) < float(worker["memory_total_bytes"])
    assert float(worker["cpu_percent"]) >= 0
    assert "gpu_percent" not in worker
