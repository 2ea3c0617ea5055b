"""The options that say who does the work."""

import argparse

import pytest

from w2sd_video.jobs.pool import Pool
from w2sd_video.jobs.pool_options import Shard, add_pool_options, pool_of, shard_of
from w2sd_video.messages import ConfigError


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_pool_options(parser)
    return parser.parse_args(words)


def test_options_name_a_pool_and_a_shard():
    options = parsed("--workers", "4", "--ray", "head:6379", "--gpus-per-worker", "0.5", "--shard", "1/3")
    assert pool_of(options.workers, options.ray, options.gpus_per_worker) == Pool(4, "head:6379", 0.5)
    assert list(shard_of(options.shard).of("abcdefgh")) == ["b", "e", "h"]
    assert parsed().workers is None and pool_of() == Pool() and pool_of().is_this_process
    assert pool_of(ray="auto") == Pool(0, "auto") and not pool_of(ray="auto").is_this_process
    assert pool_of(2, device="cpu").gpus_per_worker == 0 and pool_of(2, device="cuda").gpus_per_worker is None


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_out_every_task(count):
    shared_out = [task for index in range(count) for task in Shard(index, count).of(range(11))]
    assert sorted(shared_out) == list(range(11))
    assert list(shard_of(None).of(range(3))) == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workers": "0"}, "--workers 0: must be a whole number from 1 to 4096"),
        ({"workers": "two"}, "--workers two: must be"),
        ({"workers": "nan"}, "--workers nan: must be"),
        ({"workers": "1.5"}, "--workers 1.5: must be"),
        ({"workers": "1e9"}, "--workers 1e9: must be"),
        ({"gpus_per_worker": "-1"}, "--gpus-per-worker -1: must be a number from 0 to 64"),
        ({"gpus_per_worker": "1.5"}, "--gpus-per-worker 1.5: must be a fraction of 1 or a whole number"),
        ({"gpus_per_worker": 1, "device": "cpu"}, "the device is the CPU; leave one out"),
        ({"cpus_per_worker": "0"}, "--cpus-per-worker 0: must be"),
        ({"ray": " "}, "--ray '': must be the address"),
        ({"workers": 2, "device": "cuda:1"}, "device cuda:1: each worker sees GPUs of its own; set --device cuda"),
    ],
)
def test_what_makes_no_pool_is_refused(given, said):
    with pytest.raises(ConfigError) as refused:
        pool_of(**given)
    assert said in str(refused.value)


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "-1/2", "a/b", "1/2/3", "4/4", "0/0", "1.0/2", "٣/٤"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ConfigError, match="--shard"):
        shard_of(text)
