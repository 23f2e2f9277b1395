"""A search on a toy problem, to be killed: `toy_driver.py RUN SAMPLER TRIALS DELAY WORKERS`."""

import importlib.util
import sys
from pathlib import Path

from paretopress.search.executors import SerialExecutor
from paretopress.search.exploration import ExplorationSettings, explore
from paretopress.search.ledger import Run
from paretopress.search.process_executor import ProcessExecutor
from paretopress.spaces.errors import ParetopressError
from paretopress.spaces.policy import DENSE, Policy


def main():
    path, sampler, trials, delay, workers = sys.argv[1:]
    source = Path(__file__).parent / "toy_evaluators.py"
    spec = importlib.util.spec_from_file_location("toy_evaluators", source)
    toys = importlib.util.module_from_spec(spec)
    sys.modules["toy_evaluators"] = toys
    spec.loader.exec_module(toys)
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(toys)
    evaluate = toys.ToyEvaluator(budget=70.0, delay=float(delay))
    executor = SerialExecutor(evaluate, threads=None) if int(workers) == 1 else ProcessExecutor(evaluate, int(workers))
    choices = {"layer0/weights": toys.BITS[1]}, {"layer2/channels": toys.WIDTHS[2]}
    seeds = [DENSE, *map(Policy.of, choices)]
    settings = ExplorationSettings(sampler, int(trials), seed=3, population=8)
    with Run.open(path, {"seed": "3", "model": "m", "space": "s"}, {"seed": 3}) as run, executor:
        explore(toys.toy_options(), {"accuracy": "max", "size": "min"}, seeds, executor, run, settings,
                constraints=["size"], on_record=lambda record: print(record.number, flush=True))


try:
    main()
except ParetopressError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
