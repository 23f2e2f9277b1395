import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))   # tests share small problems


@pytest.fixture(scope="session")
def toys():
    """The evaluators of `toy_evaluators.py`, carried by value to workers that cannot import this folder."""
    from ray import cloudpickle

    path = Path(__file__).parent / "toy_evaluators.py"
    spec = importlib.util.spec_from_file_location("toy_evaluators", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_evaluators"] = module
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    yield module
    cloudpickle.unregister_pickle_by_value(module)
    del sys.modules["toy_evaluators"]


@pytest.fixture(scope="module")
def ray_nodes():
    """A cluster of three node processes of one CPU each, which take whoever has their token."""
    from ray._raylet import AuthenticationTokenLoader, Config
    from ray.cluster_utils import Cluster

    def reload():
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("MODE", "token"), ("TOKEN", "ab" * 32)):
            patch.setenv(f"RAY_AUTH_{name}", value)
        reload()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
        reload()
        cluster.shutdown()
    reload()


@pytest.fixture
def no_token(monkeypatch, tmp_path):
    """An environment that says nothing about tokens, as most are."""
    from ray._raylet import AuthenticationTokenLoader, Config

    with monkeypatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        for name in ("MODE", "TOKEN", "TOKEN_PATH"):
            patch.delenv(f"RAY_AUTH_{name}", raising=False)
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
        yield
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
