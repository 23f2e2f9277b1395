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
