import os
import subprocess
import sys
from pathlib import Path

import psutil
import redis
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


def test_a_worker_that_the_server_will_never_let_in_ends_with_the_reason(redis_url: str, tmp_path: Path) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        admin.config_set("requirepass", "right")
    environment = {
        **os.environ,
        "REDIS_URL": redis_url.replace("redis://", "redis://:wr0ng@"),
        "DFKD_STORAGE": str(tmp_path),
    }
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "synth_service.worker"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        with redis.Redis.from_url(redis_url.replace("redis://", "redis://:right@")) as again:
            again.config_set("requirepass", "")

    assert ended.returncode == 2
    assert "refuses user or password" in ended.stderr
    assert "wr0ng" not in ended.stderr
