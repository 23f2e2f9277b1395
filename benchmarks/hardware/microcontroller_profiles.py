"""Writes the T1 profiles of microcontrollers: ratios of `microcontrollers.py`, one scalar from published networks.

Usage: python benchmarks/hardware/microcontroller_profiles.py mlperf_tiny.csv hardware_profiles/library

The checks leave out a network at a time, and the board's own results from the ratios. The ESP32-S3 is calibrated on
the ticks of single kernels and checked on one network.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from microcontrollers import (
    RATES,
    STOCK,
    TERMS,
    Array,
    Submission,
    network_rows,
    ratios_of,
    read_submissions,
)
from profile_parts import integer_formats, step, with_interval
from rates import geometric_scale, latency_model, scaled_leave_one_out

from paretopress.hardware_profiles.accuracy import Accuracy, accuracy
from paretopress.hardware_profiles.features import Alignment
from paretopress.hardware_profiles.nnls import non_negative_least_squares
from paretopress.hardware_profiles.predictor import FamilyModel, LatencyModel
from paretopress.hardware_profiles.reference_networks import known_network, mobilenet_v1
from paretopress.hardware_profiles.schema import SCHEMA
from paretopress.hardware_profiles.writing import latency_section, number, profile_text, validation_entry
from paretopress.spaces.kernels import Family

KIB = 1024
ZOO = Path(__file__).with_name("stm32_model_zoo.csv")
ZOO_SOURCE = "STM32 model zoo, image_classification/pretrained_models README tables: STM32H747I-DISCO, X-CUBE-AI 9.1.0"
FOURS = "CMSIS-NN and X-CUBE-AI multiply two to four 8-bit values per instruction"
WORDS = "8-bit channels in multiples of 4 stay aligned to the 32-bit words that ESP-NN loads"
FLOATS = "float32 networks on this device are unknown: all published results are int8"


@dataclass(frozen=True, slots=True)
class Board:
    """A submission to make a profile of.

    Attributes:
        key: Round, submitter and system in the results.
        notes: Chip, clock and library.
        runtime: Name and version of the library.
        sram_bytes: Memory by the submission's system description.
        flash_bytes: Flash, the same; 0 for none.
        memory_source: Where they stand.
        library: Whose ratios of kernel families it has, where it is no Cortex-M.
        kind: Of device.
    """

    key: tuple[str, str, str]
    notes: str
    runtime: tuple[str, str]
    sram_bytes: float
    flash_bytes: float
    memory_source: str
    library: str = ""
    kind: str = "mcu"


_SYSTEM = "MLPerf Tiny {} results, system description of {}"
BOARDS = {
    "stm32-l4r5": Board(
        ("v1.3", "STMicroelectronics", "NUCLEO_L4R5ZI-P"), "Cortex-M4 at 120 MHz, 3 V with SMPS",
        ("x-cube-ai", "10.2"), 640 * KIB, 2048 * KIB, _SYSTEM.format("v1.3", "NUCLEO_L4R5ZI-P"),
    ),
    "stm32-f746": Board(
        ("v1.1", "plumerai", "DISCO-F746NG"), "Cortex-M7 at 216 MHz",
        ("plumerai-inference-engine", "2023.05"), 320 * KIB, 1024 * KIB, _SYSTEM.format("v1.1", "DISCO-F746NG"),
    ),
    "stm32-h7a3": Board(
        ("v1.1", "STMicroelectronics", "NUCLEO_H7A3ZI_Q"), "Cortex-M7 at 280 MHz", ("x-cube-ai", "7.3"), 1.18e6,
        2048 * KIB, "ST STM32H7A3ZI datasheet (DS13195)",
    ),
    "stm32-u575": Board(
        ("v1.3", "STMicroelectronics", "NUCLEO_U575ZI_Q"), "Cortex-M33 at 160 MHz, 1.8 V with SMPS",
        ("x-cube-ai", "10.2"), 768 * KIB, 2048 * KIB, _SYSTEM.format("v1.3", "NUCLEO_U575ZI_Q"),
    ),
    "stm32-u385": Board(
        ("v1.3", "STMicroelectronics", "NUCLEO_U385RG_Q"), "Cortex-M33 at 96 MHz, 1.8 V with SMPS",
        ("x-cube-ai", "10.2"), 256 * KIB, 1024 * KIB, _SYSTEM.format("v1.3", "NUCLEO_U385RG_Q"),
    ),
}
BOARDS["syntiant-ndp120"] = Board(
    ("v1.1", "syntiant", "syntiant_9120_1v1_98mhz"), "Syntiant Core 2 at 98 MHz, 1.1 V; open division",
    ("syntiant-sdk", "2023"), 1024 * KIB, 0, _SYSTEM.format("v1.1", "NDP9120"), STOCK, "npu",
)
H747_MEMORY = "ST STM32H747XI: 1 Mbyte of RAM, 2 Mbyte of flash (STM32H747I-DISCO data brief)"


def _document(
    identifier: str, notes: str, runtime: tuple[str, str], memory: Mapping[str, Any], latency: dict[str, Any],
    validation: list[dict[str, Any]], extra: Mapping[str, Any], steps: str = FOURS,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA, "id": identifier, "kind": "mcu", "tier": "T1", "notes": notes,
        "runtime": {
            "name": runtime[0], "version": runtime[1], "threads": 1, "batch": 1, "removes_dead_branches": True,
        },
        "formats": integer_formats(FLOATS),
        "align": step(4, "derived", steps),
        "memory": dict(memory),
        "latency": latency,
        **extra,
        "validation": validation,
    }


def _model(identifier: str, rates: Array) -> LatencyModel:
    return latency_model(identifier, {"int8": RATES}, {"int8": rates}, 0.0, "element")


def board_profile(identifier: str, submissions: list[Submission]) -> dict[str, Any]:
    """The profile of a board of the MLPerf Tiny results."""
    board = BOARDS[identifier]
    one = next(item for item in submissions if (item.round, item.submitter, item.system) == board.key)
    names, times = one.times()
    shape = network_rows(names)
    library = one.kind or board.library
    held = scaled_leave_one_out(shape @ ratios_of(submissions, library, one.board), times)
    result = accuracy(held, times)
    rates = ratios_of(submissions, library)
    rates = rates * geometric_scale(shape @ rates, times)
    source = f"MLPerf Tiny {one.round} closed results (Apache-2.0), {one.submitter} {one.system}"
    model = with_interval(_model(identifier, rates), result)
    fitted = f"{source}: one scalar; ratios of kernel families from all Cortex-M submissions with {library}"
    extra = {}
    if one.microjoules:
        power = float(np.mean([one.microjoules[name] / one.microseconds[name] * 1e3 for name in one.microjoules]))
        extra["active_power_mw"] = number(
            power, "derived", f"{source}: energy / time, mean over {len(one.microjoules)} networks"
        )
    sizes = {"sram_bytes": board.sram_bytes, "flash_bytes": board.flash_bytes}
    memory = {name: number(size, "datasheet", board.memory_source) for name, size in sizes.items() if size}
    notes = f"{board.notes}, {board.runtime[0]} {board.runtime[1]}, int8 only. Calibrated on {len(names)} networks" + (
        "; energy is active power times latency." if extra else "; no published energy."
    )
    entry = validation_entry(
        "MLPerf Tiny, one network left out, ratios of other boards", result, source, len(names) - 1
    )
    content = _document(
        identifier, notes, board.runtime, memory, latency_section(model, "fitted", fitted), [entry], extra
    )
    return {**content, "kind": board.kind}


def zoo_profile(submissions: list[Submission]) -> dict[str, Any]:
    """The STM32H747 with the stock library: seven networks of ST's model zoo."""
    with ZOO.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    times = np.array([float(row["milliseconds"]) * 1e3 for row in rows])
    ratios = ratios_of(submissions, STOCK)
    shape = RATES.rows([known_network(row["network"], 8) for row in rows]) @ ratios
    result = accuracy(scaled_leave_one_out(shape, times), times)
    model = with_interval(_model("stm32-h747", ratios * geometric_scale(shape, times)), result)
    fitted = f"{ZOO_SOURCE}: one scalar; ratios of kernel families from MLPerf Tiny submissions with {STOCK}"
    kernels = np.array([len(known_network(row["network"], 8).kernels) for row in rows])
    runtime = np.array([float(row["runtime_kib"]) * KIB for row in rows])
    memory = {
        "sram_bytes": number(1024 * KIB, "datasheet", H747_MEMORY),
        "flash_bytes": number(2048 * KIB, "datasheet", H747_MEMORY),
        "runtime_bytes_per_kernel": number(
            round(float(runtime @ kernels / (kernels @ kernels))), "fitted", f"{ZOO_SOURCE}: runtime RAM by kernels"
        ),
    }
    entry = validation_entry(
        "STM32 model zoo, one network left out, ratios from MLPerf Tiny", result, ZOO_SOURCE, len(rows) - 1
    )
    notes = "Cortex-M7 at 400 MHz, X-CUBE-AI 9.1.0, int8 only. Calibrated on seven networks; no published energy."
    return _document(
        "stm32-h747", notes, ("x-cube-ai", "9.1.0"), memory, latency_section(model, "fitted", fitted), [entry], {}
    )


ESP_NN = "ESP-NN README (Espressif, Apache-2.0): kernel ticks on the ESP32-S3 at 240 MHz, assembly versions"
PERSON_DETECT = "tflite-micro-esp-examples README (Espressif, Apache-2.0): person_detection on ESP32-S3 with ESP-NN"
PERSON_DETECT_US = 54_000.0
ESP_MHZ = 240.0
# Per published kernel: ticks, then multiply-accumulates, outputs, and products over fewer than four channels.
_ESP_DENSE = (
    (461_398.0, 64 * 64 * 100, 64 * 100, 0),
    (43_578.0, 16 * 16 * 64, 16 * 64, 0),
    (643_689.0, 64 * 27 * 64, 64 * 64, 64 * 27 * 64),
)
_ESP_DEPTHWISE = ((191_931.0, 9 * 16 * 256, 16 * 256), (366_102.0, 25 * 32 * 144, 32 * 144))
_ESP_ADD_TICKS, _ESP_ADD_INPUTS = 71_644.0, 2 * 1615
_ESP_POOL_TICKS, _ESP_POOL_READS = 76_747.0, 9 * 16 * 14 * 14
_ESP_LINEAR_TICKS, _ESP_LINEAR_WORK = 4_439.0, 265 * 3


def _ticks(table: tuple[tuple[float, ...], ...]) -> Array:
    """Ticks per unit of every column after the first."""
    rows = np.array(table)
    return non_negative_least_squares(rows[:, 1:] / rows[:, :1], np.ones(len(rows)))


def esp32_s3_profile() -> dict[str, Any]:
    """The ESP32-S3 from the ticks of single kernels."""
    work, output, shallow = _ticks(_ESP_DENSE) * 1e3 / ESP_MHZ
    reads, depthwise_output = _ticks(_ESP_DEPTHWISE) * 1e3 / ESP_MHZ
    element = _ESP_ADD_TICKS / _ESP_ADD_INPUTS * 1e3 / ESP_MHZ
    pooled = _ESP_POOL_TICKS / _ESP_POOL_READS * 1e3 / ESP_MHZ
    linear = _ESP_LINEAR_TICKS / _ESP_LINEAR_WORK * 1e3 / ESP_MHZ
    values: dict[Family, dict[str, float]] = {
        Family.CONV: {
            "work_1x1": work, "work_3x3": work, "work_other": work, "work_shallow": shallow, "outputs": output,
        },
        Family.GROUPED: {"work": work, "outputs": output},
        Family.DEPTHWISE: {"window_reads": reads, "outputs": depthwise_output},
        Family.LINEAR: {"work": linear},
        Family.POOL: {"window_reads": pooled},
        **{family: {"inputs": element} for family in TERMS if "inputs" in TERMS[family]},
    }
    families = {
        (family, "int8"): FamilyModel(tuple(terms), np.array(list(terms.values())), None)
        for family, terms in values.items()
    }
    boundary = (("elements",), np.array([element]))
    model = LatencyModel(
        "esp32-s3", {"int8": Alignment()}, families, {"quantize": boundary, "dequantize": boundary}, {}, 0.0, 1.0, 1.0
    )
    view = mobilenet_v1(0.25, 96, 8, 2, channels=1)
    predicted = model.kernel_us(view.kernels, ["int8"] * len(view.kernels)).sum()
    result: Accuracy = accuracy(np.array([predicted]), np.array([PERSON_DETECT_US]))
    entry = validation_entry("person_detection (MobileNetV1 0.25, 96 x 96)", result, PERSON_DETECT, 0)
    del entry["spearman"]   # one network has no ranks
    memory = {
        "sram_bytes": number(512 * KIB, "datasheet", "Espressif ESP32-S3 series datasheet: 512 KB of SRAM"),
        "flash_bytes": number(16384 * KIB, "datasheet", "Espressif ESP32-S3 series datasheet: up to 16 MB of flash"),
    }
    section = latency_section(with_interval(model, result), "fitted", f"{ESP_NN}, {ESP_MHZ:.0f} MHz")
    notes = (
        "Two LX7 cores at 240 MHz, TensorFlow Lite Micro with ESP-NN, int8 only. Calibrated on ten single kernels, "
        "most of them reading external memory; no published energy."
    )
    return _document("esp32-s3", notes, ("tflite-micro-esp-nn", "2021"), memory, section, [entry], {}, WORDS)


def documents(path: Path) -> list[dict[str, Any]]:
    """All profiles."""
    submissions = read_submissions(path)
    boards = [board_profile(identifier, submissions) for identifier in BOARDS]
    return [*boards, zoo_profile(submissions), esp32_s3_profile()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="mlperf_tiny.csv")
    parser.add_argument("folder", type=Path, help="where to write the profiles")
    arguments = parser.parse_args()
    for content in documents(arguments.data):
        (arguments.folder / f"{content['id']}.yaml").write_text(profile_text(content), encoding="utf-8")
        for entry in content["validation"]:
            print(f"{content['id']}: n {entry['n']}, MAPE {entry['mape']:.1%}, within 10% {entry['within10']:.0%}")


if __name__ == "__main__":
    main()
