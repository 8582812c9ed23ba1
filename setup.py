"""Packaging of qhdm; the versions this was tested with are in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="qhdm",
    version="0.1.0",
    description="Quantum hybrid diffusion models for Earth Observation, native to Qiskit",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["qhdm", "qhdm.*"]),
    package_data={
        "qhdm": ["py.typed"],
        "qhdm.data": ["bundled/*"],
        "qhdm.report.pages": ["templates/*"],
    },
    entry_points={"console_scripts": ["qhdm = qhdm.cli:main"]},
    install_requires=[
        "torch>=2.6",
        # TIFF and PNG of more than 8 bits, which Pillow cuts to 8; the first releases for NumPy 2.
        "imagecodecs>=2024.6",
        "tifffile>=2024.6",
        "msgpack>=1.0",
        "qiskit>=2.1,<3",
        "qiskit-aer>=0.17,<0.19",
        # The fake devices, and the client-side Sampler, whose modules still move.
        "qiskit-ibm-runtime>=0.51,<0.60",
        # 0.9 moved EstimatorQNN to V2 primitives; minor releases before 1.0 break the API.
        "qiskit-machine-learning>=0.9,<0.10",
        # The reader of OpenQASM 3 is a package apart; both are at 0.x and 1.x, where APIs move.
        "qiskit-qasm3-import>=0.6,<0.7",
        "openqasm3[parser]>=1.0,<2",
        "jinja2>=3.1,<4",
        "matplotlib>=3.8",
        "numpy>=2",
        "pillow>=10.1",
        # Precision, recall, density and coverage by their authors; it has had two releases.
        "prdc>=0.2,<0.3",
        "psutil>=5.9",
        "pydantic>=2.7,<3",
        # Qiskit's drawings of circuits with matplotlib need it.
        "pylatexenc>=2.10",
        "pyyaml>=6",
        "requests>=2.31",
        "rustworkx>=0.15",
        "safetensors>=0.4",
        "scipy>=1.11",
        "torchmetrics>=1.4,<2",
        "tqdm>=4.66",
    ],
    extras_require={
        "tensorboard": ["tensorboard>=2.14"],
        # The networks of `qhdm evaluate --extractor inception|dinov2`.
        "extractors": ["torch-fidelity>=0.3,<0.5", "transformers>=5,<6"],
        "bench": [
            "deepquantum>=4",
            "pennylane>=0.40",
            "pyqtorch>=1.7",
            "qulacs>=0.6",
        ],
        # Comparisons on a cluster; minor releases drop interfaces that were deprecated.
        "ray": ["ray>=2.30,<3"],
        "fuzz": ["atheris>=2.3"],
        "dev": [
            "diffusers>=0.30",
            "hypothesis>=6.100",
            "mypy>=1.10",
            "pennylane>=0.40",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ray>=2.30,<3",
            "ruff>=0.6",
            "tensorboard>=2.14",
            "transformers>=5,<6",
            "types-PyYAML",
            "types-requests",
            "types-tqdm",
            "websockets>=13",
        ],
    },
)
