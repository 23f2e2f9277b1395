import json
import math

import pytest

from paretopress.cli import main
from paretopress.hardware_profiles.catalogue import load_profile, read_profile
from paretopress.hardware_profiles.measured import read_measured
from paretopress.hardware_profiles.networks import random_network
from paretopress.hardware_profiles.reference_networks import known_network
from paretopress.hardware_profiles.validation import validate
from paretopress.spaces.errors import ProfileError

S24, ZEN, PHONE, BOARD = "qualcomm-hexagon-s24", "x86-zen4-vnni-onnxruntime", "cortex-a76-tflite", "stm32-h747"


def run(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code or 0


def table(tmp_path, text, name="measured.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_figures_of_a_table_are_those_of_its_rows(tmp_path):
    profile = load_profile(ZEN)
    names, factors = ("resnet-18", "resnet-50", "mobilenet-v2"), (1.0, 1.04, 0.8)
    lines = ["network,arithmetic,measured_ms"]
    for name, factor in zip(names, factors, strict=True):
        lines.append(f"{name},int8,{profile.latency_ms(known_network(name, 8)).mid / factor!r}")
    report = validate(profile, table(tmp_path, "\n".join(lines)))
    assert report.errors.n == 3
    assert report.errors.mape == pytest.approx((0.0 + 0.04 + 0.2) / 3)
    assert report.errors.bias == pytest.approx((0.0 + 0.04 - 0.2) / 3)
    assert report.errors.within5 == pytest.approx(2 / 3)
    assert report.errors.within10 == pytest.approx(2 / 3)
    assert report.errors.spearman == 1.0
    assert report.worst(1)[0].row.name == "mobilenet-v2 (int8)"


def test_onnx_files_stand_beside_the_table(tmp_path):
    network = random_network(3, "int8")
    (tmp_path / "three.onnx").write_bytes(network.model)
    profile = load_profile(ZEN)
    expected = profile.latency_ms(network.view).mid
    report = validate(profile, table(tmp_path, f"network,measured_us\nthree.onnx,{expected * 1e3 / 1.1!r}\n"))
    assert report.rows[0].predicted_ms == pytest.approx(expected, rel=1e-6)
    assert report.errors.bias == pytest.approx(0.1)
    assert "spearman" not in report.entry("one file on a bench")


def test_nasbench_strings(tmp_path):
    cell = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
    report = validate(load_profile(PHONE), table(tmp_path, f"network,measured_ms\nnasbench201:{cell},16.4499\n"))
    assert abs(report.errors.bias) < 0.1


def test_kernels_are_priced_without_the_overhead_of_a_call(tmp_path):
    profile = load_profile(ZEN)
    header = "op,cin,cout,kernel,input_size,weight_bits,activation_bits,measured_us"
    text = f"{header}\nconv,64,64,3,28,8,8,170\nlinear,1024,1024,,,,,57\n"
    rows = read_measured(table(tmp_path, text), profile)
    assert rows[0].view.macs == 64 * 64 * 9 * 28 * 28
    assert rows[1].view.macs == 1024 * 1024
    report = validate(profile, table(tmp_path, text))
    assert report.rows[0].predicted_ms * 1e3 == pytest.approx(profile.kernel_us(rows[0].view.kernels)[0])


def test_what_a_profile_does_not_know_is_unknown_and_never_nothing(tmp_path):
    text = "network,arithmetic,measured_ms\nresnet-8,int8,28.67\nresnet-8,float32,100\n"
    report = validate(load_profile(BOARD), table(tmp_path, text))
    assert report.errors.n == 1
    assert [item.row.line for item in report.unknown] == [3]
    assert "cannot run kernel" in report.unknown[0].reason
    assert math.isnan(report.unknown[0].error)
    assert report.entry("the STM32 model zoo tables")["unknown"] == 1
    kernels = "op,cin,cout,input_size,weight_bits,activation_bits,measured_us\nnorm,64,64,8,,8,5\nadd,64,64,8,,8,5\n"
    report = validate(load_profile(BOARD), table(tmp_path, kernels))
    assert report.rows[0].predicted_ms is None
    assert "no figures for int8 norm kernels" in report.rows[0].reason


FAULTS = [
    ("", "empty"),
    ("network,measured_ms\n", "no rows"),
    ("network\nresnet-8\n", "expected one column of times"),
    ("network,measured_ms,measured_us\nresnet-8,1,1\n", "measured_ms and measured_us"),
    ("model,measured_ms\nresnet-8,1\n", "expected a column 'network'"),
    ("network,measured_ms,arithmetc\nresnet-8,1,int8\n", "did you mean 'arithmetic'"),
    ("network,measured_ms,measured_ms\nresnet-8,1,1\n", "stands there twice"),
    ("op,cin,measured_us\nconv,3,1\n", "'cout' is missing"),
    ("network,arithmetic,measured_ms\nresnet-8,int8,-3\n", ":2: measured_ms is -3; a time is above 0"),
    ("network,arithmetic,measured_ms\nresnet-8,int8,0\n", ":2: measured_ms is 0"),
    ("network,arithmetic,measured_ms\nresnet-8,int8,nan\n", ":2: measured_ms is nan"),
    ("network,arithmetic,measured_ms\nresnet-8,int8,inf\n", ":2: measured_ms is inf"),
    ("network,arithmetic,measured_ms\nresnet-8,int8,fast\n", "'fast' is not a number"),
    ("network,arithmetic,measured_ms\nresnet-8,int8,28\nresnet-8,int8,29\n", ":3: 'resnet-8 (int8)' stands in line 2"),
    ("network,arithmetic,measured_ms\nresnet-8,int8,0.02867\n", ":2: resnet-8 (int8): measured 0.02867 ms is a thou"),
    ("network,arithmetic,measured_s\nresnet-8,int8,28.67\n", "is a thousand times of the predicted"),
    ("network,arithmetic,measured_ms\nresnet-32,int8,177.7\nresnet-8,int8,0.02867\n", ":3: resnet-8 (int8)"),
    ("network,arithmetic,measured_ms\nresnet9,int8,28\n", ":2: unknown network 'resnet9'; did you mean"),
    ("network,arithmetic,measured_ms\nresnet-8,int4,28\n", "unknown arithmetic 'int4'"),
    ("network,measured_ms\nmissing.onnx,28\n", "missing.onnx: no such file"),
    ("network,measured_ms\nnasbench201:|conv~0|,28\n", "NAS-Bench-201 architecture"),
    ("network,arithmetic,measured_ms,runtime_version\nresnet-8,int8,28,8.0.0\n",
     "measured with runtime version 8.0.0, stm32-h747 is for 9.1.0"),
    ("network,arithmetic,measured_ms,runtime\nresnet-8,int8,28,tflm\n", "measured with runtime tflm"),
    ("network,arithmetic,measured_ms,threads\nresnet-8,int8,28,2\n", "measured with threads 2"),
    ("op,cin,cout,measured_us\nconvolution,3,8,1\n", "unknown op 'convolution'"),
    ("op,cin,cout,weight_bits,measured_us\nlinear,3,8,12,1\n", "unknown width weight_bits '12'"),
    ("op,cin,cout,input_size,measured_us\nconv,3,8,wide,1\n", "input_size 'wide' is not a size"),
    ("op,cin,cout,input_size,kernel,measured_us\nconv,3,8,8x8,3x3x3,1\n", "has 3 dimensions, input_size has 2"),
    ("op,cin,cout,measured_us\nconv,0,8,1\n", "cin '0' is not a count"),
    ("op,cin,cout,groups,input_size,measured_us\nconv,9,8,2,8,1\n", "do not divide into 2 groups"),
    ("network,arithmetic,measured_ms\nresnet-8,float32,28\n", "knows none of the 1 rows"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_faults_have_one_line_with_the_place(text, message, tmp_path):
    with pytest.raises(ProfileError) as caught:
        validate(load_profile(BOARD), table(tmp_path, text))
    assert message in str(caught.value)
    assert "measured.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_datasheets_predict_nothing_that_could_be_checked(tmp_path):
    with pytest.raises(ProfileError, match="is a T0 profile"):
        validate(load_profile("h200-sxm"), table(tmp_path, "network,measured_ms\nresnet-50,1\n"))


def test_bytes_and_missing_tables(tmp_path):
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="not a text file"):
        read_measured(tmp_path / "binary.csv", load_profile(BOARD))
    with pytest.raises(ProfileError, match="No such file"):
        read_measured(tmp_path / "none.csv", load_profile(BOARD))


def test_the_command_writes_the_table_into_the_profile(tmp_path, capsys):
    rows = "resnet-18,int8,0.287\nmobilenet-v2,int8,0.29\nresnet-18,float32,0.92\n"
    path = table(tmp_path, f"network,arithmetic,measured_ms\n{rows}")
    output = tmp_path / "checked.yaml"
    assert run("device", "validate", S24, "--against", path, "-o", output, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n"], report["unknown"], report["written"]) == (3, 0, str(output))
    assert [row["line"] for row in report["rows"]] == [2, 3, 4]
    entries = read_profile(output).document.validation
    assert entries[-1].set == "measured.csv"
    assert entries[-1].n == 3
    assert len(entries) == 1 + len(load_profile(S24).document.validation)
    # A second check of the same table replaces the first.
    assert run("device", "validate", str(output), "--against", path, "-o", str(output)) == 0
    text = capsys.readouterr().out
    assert "mean error" in text
    assert "Largest errors" in text
    assert len(read_profile(output).document.validation) == len(entries)
    assert run("device", "lint", str(output)) == 0
    assert "ok" in capsys.readouterr().out


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    path = table(tmp_path, "network,measured_ms\nresnet-50,-1\n")
    assert run("device", "validate", S24, "--against", path) == 2
    assert "a time is above 0" in capsys.readouterr().err
    good = table(tmp_path, "network,arithmetic,measured_ms\nresnet-50,int8,0.59\n")
    assert run("device", "validate", S24, "--against", str(good), "-o", str(tmp_path / "x.txt")) == 2
    assert "write it to a .yaml file" in capsys.readouterr().err
    broken = tmp_path / "broken.yaml"
    broken.write_text("schema: hwprofile/1\nid: x\n")
    assert run("device", "lint", str(broken), BOARD, "--json") == 2
    faults = {entry["file"]: entry["faults"] for entry in json.loads(capsys.readouterr().out)}
    assert faults[BOARD] == []
    assert faults[str(broken)]
