"""Calibration, compression with compensation, realisation, artefacts and ONNX."""
