# SPDX-FileCopyrightText: 2026 ModelCloud.ai
# SPDX-License-Identifier: Apache-2.0

import os

import pytest

import gptqmodel


@pytest.mark.parametrize("cores", [1, 2, 3, None])
def test_pool_can_be_built_on_few_cores(monkeypatch, cores):
    monkeypatch.delenv("GPTQMODEL_CPU_WORKERS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)

    pool = gptqmodel._build_device_thread_pool()
    try:
        assert pool.submit("model_loader:cpu", lambda: 7).result(timeout=30) == 7
    finally:
        pool.shutdown(wait=True)


@pytest.mark.parametrize(("cores", "workers"), [(4, 2), (8, 4), (64, 12)])
def test_more_cores_get_the_workers_they_had(monkeypatch, cores, workers):
    monkeypatch.delenv("GPTQMODEL_CPU_WORKERS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(gptqmodel, "has_gil_disabled", lambda: False)

    assert gptqmodel._default_cpu_workers() == workers
