from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def small(tiny):
    """The tiny model captured and calibrated, with its space and costs on the Zen 4 profile."""
    from paretopress.compressors.calibration import calibrate
    from paretopress.compressors.entries import Entries
    from paretopress.compressors.program import build_program
    from paretopress.evaluators.costs import CostModel
    from paretopress.hardware_profiles.catalogue import load_profile
    from paretopress.spaces.space import SpaceSettings, build_space

    inputs = tiny.module.data().calibration
    program = build_program(tiny.module.model(), (inputs[:4],))
    calibration = calibrate(program, [[inputs]])
    costs = CostModel((load_profile("x86-zen4-vnni-onnxruntime"),))
    space = build_space(program.structure, [device.capabilities() for device in costs.devices], SpaceSettings())
    return SimpleNamespace(
        program=program, structure=program.structure, costs=costs, space=space,
        entries=Entries(program, calibration), calibration=calibration,
    )
